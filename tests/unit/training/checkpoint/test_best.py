"""The best checkpoint has one owner: judged, kept, noted, also on a disk that is full for a while."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from beni.distributed.collectives import Peers
from beni.errors import ConfigError
from beni.training.checkpoint.best import Best, BestCheckpoint, read_best
from beni.training.checkpoint.files import Checkpoints
from support.checkpoint_log import Log

CPU = torch.device("cpu")


@pytest.fixture
def best(tmp_path):
    """best(metric) -> the owner of the best checkpoint in the test's folder."""
    return lambda metric: BestCheckpoint(tmp_path, metric, Peers(), Log())


def saves(checkpoints, step):
    checkpoints.save(step, {"x": torch.zeros(1)}, {})
    assert checkpoints.wait().problem is None


def marks(checkpoints, step, value):
    best = checkpoints.best
    best.propose(step, {best.metric: value})
    if best.written(True):
        checkpoints.discard_old()


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_the_best_is_kept_beside_the_newest(tmp_path, best):
    checkpoints = Checkpoints(tmp_path, Peers(), 1, best("eval/accuracy"))
    for step in (1, 2, 3, 4, 5):
        saves(checkpoints, step)
        if step in (2, 4):
            marks(checkpoints, step, step / 10)
        elif step == 3:
            assert names(tmp_path) == ["best.json", "step_00000002", "step_00000003"]
    assert read_best(tmp_path) == (Best(4, "eval/accuracy", 0.4), None)
    assert names(tmp_path) == ["best.json", "step_00000004", "step_00000005"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 4, "metric": "eval/accuracy", "value": 0.4}
    assert checkpoints.best.log.bests == [(2, "eval/accuracy", 0.2), (4, "eval/accuracy", 0.4)]


def test_a_best_that_a_full_disk_does_not_note_is_kept_and_noted_with_the_next_checkpoint(tmp_path, best, monkeypatch):
    write, room = Path.write_text, []

    def written(path, *args, **kwargs):
        if "best.json" in path.name and not room:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", written)
    checkpoints = Checkpoints(tmp_path, Peers(), 1, best("eval/loss"))
    saves(checkpoints, 1)
    marks(checkpoints, 1, 0.5)
    (notice,) = checkpoints.best.log.notices
    assert "No space left" in notice
    saves(checkpoints, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
    assert not checkpoints.best.is_beaten(2, {"eval/loss": 0.6}, CPU)
    room.append(True)
    saves(checkpoints, 3)
    assert names(tmp_path) == ["best.json", "step_00000001", "step_00000003"]
    assert read_best(tmp_path) == (Best(1, "eval/loss", 0.5), None)


def test_a_best_whose_checkpoint_is_gone_is_forgotten(tmp_path, best):
    checkpoints = Checkpoints(tmp_path, Peers(), 1, best("eval/loss"))
    saves(checkpoints, 1)
    marks(checkpoints, 1, 0.5)
    assert read_best(tmp_path) == (Best(1, "eval/loss", 0.5), None)
    shutil.rmtree(tmp_path / "step_00000001")
    assert read_best(tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "best.json is not complete JSON"),
        ("[]", "best.json is damaged: it is [], expected an object"),
        ('{"step": 1}', "best.json is damaged: metric is missing"),
        (
            '{"step": "1", "metric": "eval/loss", "value": 2}',
            "best.json is damaged: step is '1', expected a whole number",
        ),
    ],
)
def test_a_note_that_is_none_names_no_best_and_the_run_says_why(tmp_path, best, text, why):
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "best.json").write_text(text)
    assert read_best(tmp_path) == (None, why)
    resumed = best("eval/loss")
    resumed.resume(1)
    assert resumed.log.notices == [f"{why}; the next evaluation counts as the best so far"]


def test_what_is_being_written_counts_and_what_was_not_written_is_forgotten(best):
    one = best("eval/accuracy")
    one.propose(3, {"eval/accuracy": 0.9})
    assert not one.is_beaten(4, {"eval/accuracy": 0.5}, CPU)
    assert not one.written(False)
    assert one.log.bests == []
    assert one.is_beaten(4, {"eval/accuracy": 0.5}, CPU)


@pytest.mark.parametrize(
    ("metric", "step", "expected"),
    [("eval/accuracy", 4, False), ("eval/accuracy", 1, True), ("eval/loss", 4, True)],
)
def test_a_run_goes_on_with_its_best_unless_that_is_of_another_metric_or_of_a_later_step(
    tmp_path, best, metric, step, expected
):
    checkpoints = Checkpoints(tmp_path, Peers(), 1, best("eval/accuracy"))
    saves(checkpoints, 2)
    marks(checkpoints, 2, 0.8)
    again = best(metric)
    again.resume(step)
    assert again.is_beaten(5, {metric: 0.7}, CPU) == expected


@pytest.mark.parametrize(("metric", "better", "worse"), [("eval/loss", 0.1, 0.2), ("eval/accuracy", 0.2, 0.1)])
def test_less_is_better_for_a_loss_and_of_equals_the_earlier_one_stays(metric, better, worse):
    assert Best(2, metric, better).beats(Best(1, metric, worse))
    assert not Best(2, metric, worse).beats(Best(1, metric, better))
    assert not Best(2, metric, better).beats(Best(1, metric, better))


def test_a_run_that_keeps_no_best_beats_nothing_and_a_metric_that_is_not_there_is_named(best):
    assert not best(None).is_beaten(1, {"eval/loss": 1.0}, CPU)
    with pytest.raises(ConfigError, match="keep_best=eval/bleu, but this evaluation measures eval/loss"):
        best("eval/bleu").is_beaten(1, {"eval/loss": 1.0}, CPU)
