"""A signal ends a run after the step, saved; the same command has the digits of a run that nobody touched."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from beni.errors import Preempted
from beni.run import train
from beni.runs.identity import run_folder
from beni.training import preempt
from beni.training.preempt import Preemption

SIX = ("train.steps=6", "checkpoint.every=4", "optim.lr=1e-2", "connector.dropout=0.2")
EACH = pytest.mark.parametrize("number", preempt.SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def before():
    """Other handlers than the ones of pytest are seen, and put back."""
    handlers = {number: signal.getsignal(number) for number in preempt.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@EACH
def test_a_signal_is_noted_while_steps_are_taken(number):
    with Preemption() as preemption, preemption.deferred():
        assert not preemption.asked
        signal.raise_signal(number)
        assert preemption.asked
        assert preemption.name == number.name


@EACH
def test_a_signal_before_the_first_step_ends_the_run(number):
    with pytest.raises(Preempted, match=number.name), Preemption():
        signal.raise_signal(number)


def test_a_signal_while_the_model_is_built_ends_the_run_as_one_elsewhere_does(tiny_run, monkeypatch):
    monkeypatch.setattr("beni.model.build.build_model", lambda *known: signal.raise_signal(signal.SIGTERM))
    run = tiny_run()
    with pytest.raises(Preempted, match="SIGTERM before the first"):
        train(run)
    assert json.loads((run_folder(run) / "status.json").read_text())["state"] == "preempted"


def test_a_signal_while_the_data_is_indexed_ends_the_run_before_it_has_written_anything(tiny_run, monkeypatch):
    monkeypatch.setattr("beni.assemble._schedule", lambda *known: signal.raise_signal(signal.SIGUSR1))
    run = tiny_run()
    with pytest.raises(Preempted, match="SIGUSR1 before the first"):
        train(run)
    assert not run_folder(run).exists()


@EACH
def test_one_of_several_processes_ends_where_they_meet(number):
    with pytest.raises(Preempted, match=number.name), Preemption(lambda asked: asked) as preemption:  # noqa: PT012
        preemption.sync_point()
        signal.raise_signal(number)
        with preemption.deferred():
            assert preemption.asked
        with pytest.raises(Preempted):
            preemption.sync_point()
        preemption.sync_point()


def test_further_signals_change_nothing():
    with Preemption() as preemption, preemption.deferred():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.raise_signal(number)
        assert preemption.name == "SIGTERM"


def test_another_ctrl_c_means_at_once(monkeypatch):
    monkeypatch.setattr(preempt, "AGAIN", 0.0)
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption, preemption.deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_that_torchrun_repeats_is_one(monkeypatch):
    monkeypatch.setattr(preempt, "AGAIN", 60.0)
    with Preemption() as preemption, preemption.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert preemption.name == "SIGINT"


def test_handlers_are_put_back_and_told_afterwards():
    told = []
    signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    before = {number: signal.getsignal(number) for number in preempt.SIGNALS}
    with pytest.raises(Preempted), Preemption() as preemption, preemption.deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGINT)
        assert told == []
        raise Preempted
    assert told == [signal.SIGUSR2]
    assert {number: signal.getsignal(number) for number in preempt.SIGNALS} == before


def test_a_run_that_ends_well_tells_nobody():
    told = []
    signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    with Preemption() as preemption, preemption.deferred():
        signal.raise_signal(signal.SIGUSR2)
    assert told == []


def test_outside_the_main_thread_no_handler_is_set():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def elsewhere():
        with Preemption() as preemption:
            seen.append((preemption.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_run_is_saved_after_the_step_and_goes_on_with_the_same_digits(tiny_run, fit, tmp_path, at):
    run = tiny_run(*SIX)
    _, expected = fit(run, tmp_path / "whole")
    with Preemption() as preemption:
        log = fit.log()
        log.at = {at: lambda: signal.raise_signal(signal.SIGTERM)}
        with pytest.raises(Preempted, match=rf"SIGTERM after step {at}: its checkpoint is saved"):
            fit(run, tmp_path / "cut", log=log, preemption=preemption)
    assert max(log.losses) == at
    _, after = fit(run, tmp_path / "cut")
    assert after.began == at
    assert log.losses | after.losses == expected.losses


def test_a_signal_during_an_evaluation_saves_the_step_before_it(tiny_run, fit, tmp_path):
    run, seen = tiny_run(*SIX, "eval.every=3"), []

    def evaluate(step):
        seen.append(step)
        if seen == [3]:
            raise Preempted("SIGTERM")
        return {}

    with pytest.raises(Preempted, match="after step 3: its checkpoint is saved"):
        fit(run, tmp_path, evaluate=evaluate)
    _, log = fit(run, tmp_path, evaluate=evaluate)
    assert log.began == 3
    assert seen == [3, 3, 6]


def test_a_signal_during_an_evaluation_that_is_made_up_for_ends_it_like_any_other(tiny_run, fit, tmp_path):
    run, seen = tiny_run(*SIX, "eval.every=3"), []
    fit(tiny_run(*SIX, "checkpoint.every=3"), tmp_path, stop=4)

    def evaluate(step):
        signal.raise_signal(signal.SIGTERM)
        seen.append(step)
        preemption.sync_point()

    with (
        pytest.raises(Preempted, match="SIGTERM after step 3: its checkpoint is saved"),
        Preemption() as preemption,
    ):
        fit(run, tmp_path, evaluate=evaluate, preemption=preemption)
    assert seen == [3]
