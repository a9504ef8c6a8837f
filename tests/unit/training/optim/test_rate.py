"""The rate of every step, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from beni.training.optim.rate import learning_rate

SETTINGS = {"schedule": "cosine", "lr": 1.0, "min_lr": 0.1, "warmup_ratio": 0.2, "decay_ratio": None}


def rates(steps, **settings):
    return [learning_rate(step, steps, SETTINGS | settings) for step in range(steps)]


def test_cosine_rises_linearly_then_falls_as_a_cosine_to_its_least():
    seen = rates(11)
    assert seen[:3] == pytest.approx([0.5, 1.0, 1.0])  # two warm-up steps, then the peak
    assert seen[2:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)])
    assert all(a > b for a, b in pairwise(seen[2:]))


def test_linear_falls_by_the_same_amount_each_step():
    seen = rates(11, schedule="linear")
    assert seen[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert [a - b for a, b in pairwise(seen[2:])] == pytest.approx([0.9 / 8] * 8)
    assert seen[-1] == pytest.approx(0.1)


def test_wsd_stays_and_falls_linearly_in_the_last_share_of_the_steps():
    seen = rates(20, schedule="wsd", decay_ratio=0.3)
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[4:14] == [1.0] * 10
    assert seen[14:] == pytest.approx([1 - 0.15 * k for k in range(1, 7)])


def test_the_plateau_of_wsd_does_not_depend_on_the_length_of_the_run():
    short, long = (rates(steps, schedule="wsd", decay_ratio=4 / steps, warmup_ratio=4 / steps) for steps in (20, 40))
    assert short[:16] == long[:16]


def test_constant_stays_at_the_peak_after_warming_up():
    assert rates(10, schedule="constant") == [0.5] + [1.0] * 9


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_short_runs_have_a_finite_rate(steps, schedule):
    seen = rates(steps, schedule=schedule, warmup_ratio=0.0, decay_ratio=0.1 if schedule == "wsd" else None)
    assert all(0.1 <= rate <= 1.0 for rate in seen)
    assert seen[0] == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_one_step_after_the_warm_up_is_at_the_peak(schedule):
    assert rates(2, schedule=schedule, warmup_ratio=0.5, decay_ratio=0.5 if schedule == "wsd" else None) == [1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_without_warmup_the_first_rate_is_the_peak(schedule):
    assert rates(10, schedule=schedule, warmup_ratio=0.0, decay_ratio=0.2)[0] == 1.0
