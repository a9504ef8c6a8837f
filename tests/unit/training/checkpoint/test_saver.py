"""Saving as a run does it: a full disk, the best evaluation, an evaluation that a crash has swallowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beni.errors import ConfigError, ResourceError
from beni.training.checkpoint import shards
from beni.training.checkpoint.files import Checkpoints

SIX = ("train.steps=6", "checkpoint.every=2", "checkpoint.keep=1", "optim.lr=1e-2")


def kept(folder):
    return sorted(path.name for path in folder.glob("step_*"))


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(n): the disk is full when the n-th checkpoint is written."""

    def make(number):
        calls, write = [], shards.write

        def fails(path, pieces):
            calls.append(path)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            write(path, pieces)

        monkeypatch.setattr(shards, "write", fails)

    return make


@pytest.fixture
def slow_disk(monkeypatch):
    """A checkpoint is settled only once it is waited for."""
    monkeypatch.setattr(Checkpoints, "settled", property(lambda self: False))


def test_a_full_disk_costs_a_checkpoint_and_the_run_goes_on(tiny_run, fit, tmp_path, full_disk):
    _, expected = fit(tiny_run(*SIX), tmp_path / "whole")
    full_disk(2)
    _, log = fit(tiny_run(*SIX), tmp_path / "full")
    assert log.losses == expected.losses
    assert [failed for _, failed in log.saves] == [0, 1, 0]
    (notice,) = log.notices
    assert "the checkpoint of step 4 could not be saved: rank 0: [Errno 28] No space left on device" in notice
    assert kept(tmp_path / "full") == ["step_00000006"]


def test_a_full_disk_keeps_the_checkpoint_before(tiny_run, fit, tmp_path, full_disk):
    full_disk(2)
    fit(tiny_run(*SIX), tmp_path, stop=5)
    assert kept(tmp_path) == ["step_00000002"]
    _, log = fit(tiny_run(*SIX), tmp_path)
    assert log.began == 2


def test_a_full_disk_ends_a_run_that_asks_for_it(tiny_run, fit, tmp_path, full_disk):
    full_disk(1)
    with pytest.raises(ResourceError, match=r"(?s)step 2 could not be saved.*No space left.*fix: free disk space"):
        fit(tiny_run(*SIX, "checkpoint.on_error=halt"), tmp_path)
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("eval/accuracy", {1: 0.1, 3: 0.9, 5: 0.4, 6: 0.9}, 3), ("eval/loss", {1: 2.0, 3: 1.5, 5: 1.7, 6: 1.9}, 3)],
)
def test_the_checkpoint_of_the_best_evaluation_is_kept(tiny_run, fit, tmp_path, metric, values, best):
    run = tiny_run(*SIX, "eval.every=1", f"checkpoint.keep_best={metric}")
    worst = 9.0 if metric == "eval/loss" else 0.0
    _, log = fit(run, tmp_path, evaluate=lambda step: {metric: values.get(step, worst)})
    assert kept(tmp_path) == [f"step_{best:08d}", "step_00000006"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": best, "metric": metric, "value": values[best]}
    assert log.bests[-1] == (best, metric, values[best])


def test_a_best_that_a_full_disk_does_not_note_is_told_of_and_ends_no_run(tiny_run, fit, tmp_path, monkeypatch):
    write = Path.write_text

    def written(path, *args, **kwargs):
        if "best.json" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", written)
    run = tiny_run(*SIX, "eval.every=2", "checkpoint.keep_best=eval/accuracy")
    _, log = fit(run, tmp_path, evaluate=lambda step: {"eval/accuracy": step / 10})
    first, last = log.notices
    assert "best.json could not be written: [Errno 28] No space left on device; the run continues" in first
    assert "the run ends without recording which checkpoint is the best" in last
    assert [step for step, *_ in log.bests] == [2, 4, 6]


def test_a_resumed_run_remembers_the_best(tiny_run, fit, tmp_path):
    run = tiny_run(*SIX, "eval.every=1", "checkpoint.keep_best=eval/accuracy")
    scores = {1: 0.1, 2: 0.8, 3: 0.5, 4: 0.3, 5: 0.6, 6: 0.7}
    fit(run, tmp_path, stop=5, evaluate=lambda step: {"eval/accuracy": scores[step]})
    fit(run, tmp_path, evaluate=lambda step: {"eval/accuracy": scores[step]})
    assert kept(tmp_path) == ["step_00000002", "step_00000006"]


def test_a_best_that_is_still_being_written_counts(tiny_run, fit, tmp_path, slow_disk):
    run = tiny_run(*SIX, "eval.every=1", "checkpoint.keep_best=eval/accuracy")
    scores = {1: 0.1, 2: 0.8, 3: 0.5, 4: 0.3, 5: 0.6, 6: 0.9}
    _, log = fit(run, tmp_path, evaluate=lambda step: {"eval/accuracy": scores[step]})
    assert [step for step, *_ in log.bests] == [1, 2, 6]
    assert kept(tmp_path) == ["step_00000006"]


def test_a_metric_that_no_evaluation_has_is_named(tiny_run, fit, tmp_path):
    run = tiny_run(*SIX, "eval.every=1", "checkpoint.keep_best=eval/bleu")
    with pytest.raises(ConfigError, match=r"keep_best=eval/bleu, but this evaluation measures eval/accuracy"):
        fit(run, tmp_path, evaluate=lambda step: {"eval/accuracy": 1.0})


def test_an_evaluation_that_a_crash_has_swallowed_is_made_up_for(tiny_run, fit, tmp_path):
    run, seen = tiny_run(*SIX, "eval.every=2"), []

    def evaluate(step):
        seen.append(step)
        if seen.count(4) == 1 and step == 4:
            raise OSError("crash")
        return {}

    with pytest.raises(OSError, match="crash"):
        fit(run, tmp_path, evaluate=evaluate)
    fit(run, tmp_path, evaluate=evaluate)
    assert seen == [2, 4, 4, 6]
