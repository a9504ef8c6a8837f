"""Where the wall time goes."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from beni.measure.goodput import PARTS, Goodput, fractions

CPU = torch.device("cpu")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_every_moment_belongs_to_one_part(clock):
    run = Goodput(CPU, started=-3.0, clock=clock)
    for part, until in (("data", 1.0), ("compute", 6.0), ("checkpoint", 6.5)):
        run.go(part)
        clock.now = until
    run.go("other")
    split = run.split()
    assert split == dict.fromkeys(PARTS, 0.0) | {"restart": 3.0, "data": 1.0, "compute": 5.0, "checkpoint": 0.5}
    assert sum(split.values()) == 9.5


def test_a_part_inside_another_is_not_counted_twice(clock):
    run = Goodput(CPU, clock=clock)
    run.go("compute")
    clock.now = 2.0
    with run.inside("communication"):
        clock.now = 2.5
        with run.span("copy"):
            clock.now = 3.5
    clock.now = 4.0
    split = run.split()
    assert (split["compute"], split["communication"], split["copy"]) == (2.5, 0.5, 1.0)


def test_a_part_ends_also_when_it_fails(clock):
    run = Goodput(CPU, clock=clock)
    run.go("compute")
    with suppress(ZeroDivisionError), run.span("evaluation"):
        clock.now = 1.0
        raise ZeroDivisionError
    clock.now = 3.0
    assert run.split()["compute"] == 2.0


def test_what_was_computed_and_lost_is_counted_as_restart(clock):
    before = {"compute": 50.0, "restart": 10.0}
    run = Goodput(CPU, before, spent=100.0, started=-5.0, clock=clock)
    assert run.split() == dict.fromkeys(PARTS, 0.0) | {"compute": 50.0, "restart": 10.0 + 40.0 + 5.0}


def test_a_run_that_goes_back_counts_each_second_once(clock):
    first = Goodput(CPU, spent=7.0, started=-3.0, clock=clock)
    first.go("compute")
    clock.now = 100.0
    saved = first.split()
    clock.now = 150.0
    spent, started = first.carried_over()
    clock.now = 160.0
    again = Goodput(CPU, saved, spent, started, clock)
    assert again.split() == saved | {"restart": 7.0 + 3.0 + 50.0 + 10.0}
    assert sum(again.split().values()) == 7.0 + 3.0 + clock.now


def test_fractions_sum_to_one():
    shares = fractions({"data": 1.0, "compute": 5.0, "other": 0.1})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["compute"] == pytest.approx(5 / 6.1)
    assert fractions({"data": 0.0}) == {"data": 0.0}
