import errno
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from beni.errors import ResourceError
from beni.runs.backlog import Backlog
from beni.tracker.metrics import MetricsFile


@pytest.fixture
def metrics(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", Backlog())
    yield file
    file.close()


@pytest.fixture
def disk(monkeypatch):
    """disk.room: bytes that a disk still takes, in one go or in parts; None where there is no end to it."""
    state, opened = SimpleNamespace(room=None), Path.open

    class File(io.FileIO):
        def write(self, data):
            if state.room is None:
                return super().write(data)
            taken = super().write(bytes(data)[: state.room])
            state.room -= taken
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return taken

    monkeypatch.setattr(Path, "open", lambda path, mode="r", *a, **k: File(path, mode) if "b" in mode else opened(path))
    return state


def rows(metrics):
    return [json.loads(line, parse_constant=pytest.fail) for line in metrics.path.read_text().splitlines()]


def test_each_line_is_on_disk_as_soon_as_it_is_appended(metrics):
    metrics.append(1, {"loss": 2.5, "label_tokens": 7})
    assert rows(metrics) == [{"step": 1, "loss": 2.5, "label_tokens": 7}]
    metrics.append(10, {"eval/accuracy": 0.5})
    assert rows(metrics)[1] == {"step": 10, "eval/accuracy": 0.5}


def test_a_value_that_is_not_finite_is_written_as_null(metrics):
    metrics.append(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan"), "e": 1.0})
    assert rows(metrics) == [{"step": 1, "a": None, "b": None, "c": None, "d": None, "e": 1.0}]


def test_a_numpy_scalar_is_written_as_a_number(metrics):
    metrics.append(1, {"loss": np.float32(0.5)})
    assert rows(metrics) == [{"step": 1, "loss": 0.5}]


def test_rewind_keeps_the_lines_up_to_the_step_and_the_run_goes_on(metrics):
    for step in (1, 10, 20, 30):
        metrics.append(step, {"loss": float(step)})
    metrics.append(20, {"eval/accuracy": 0.5})
    metrics.rewind(20)
    metrics.append(30, {"loss": 0.0})
    kept = [1.0, 10.0, 20.0, None, 0.0]
    assert [row["step"] for row in rows(metrics)] == [1, 10, 20, 20, 30]
    assert [row.get("loss") for row in rows(metrics)] == kept
    assert [p.name for p in metrics.path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("half", [b'{"step": 10, "lo', b'{"step": 10, "\xc3', b"\0" * 40, b"1"])
def test_rewind_removes_a_half_written_last_line(metrics, half):
    metrics.append(1, {"loss": 1.0})
    metrics.close()
    with metrics.path.open("ab") as file:
        file.write(half)
    metrics.rewind(100)
    metrics.append(10, {"loss": 2.0})
    assert rows(metrics) == [{"step": 1, "loss": 1.0}, {"step": 10, "loss": 2.0}]


def test_rewind_ends_a_last_line_that_lacks_only_its_newline(metrics):
    metrics.path.write_text('{"step": 1, "loss": 1.0}')
    metrics.rewind(1)
    metrics.append(10, {"loss": 2.0})
    assert [row["step"] for row in rows(metrics)] == [1, 10]


def test_rewind_of_a_run_that_wrote_nothing_makes_no_file(metrics):
    metrics.rewind(0)
    assert not metrics.path.exists()


@pytest.mark.parametrize("room", [0, 1, 20, 30])
def test_lines_that_a_full_disk_does_not_take_are_told_of_once_and_written_when_there_is_room(metrics, disk, room):
    told = []
    metrics.backlog.tell = told.append
    metrics.append(1, {"loss": 1.0})
    disk.room = room
    for step in (2, 3, 4):
        metrics.append(step, {"loss": float(step)})
    (line,) = told
    assert "metrics.jsonl could not be written" in line
    assert "No space left" in line
    with pytest.raises(ResourceError, match=r"not written: metrics\.jsonl"):
        metrics.backlog.end()
    disk.room = None
    metrics.append(5, {"loss": 5.0})
    assert [row["step"] for row in rows(metrics)] == [1, 2, 3, 4, 5]
    metrics.backlog.end()


@pytest.mark.parametrize("room", [0, 20])
def test_rewind_on_a_full_disk_leaves_the_file_until_there_is_room(metrics, disk, room):
    metrics.append(1, {"loss": 1.0})
    metrics.append(2, {"loss": 2.0})
    disk.room = room
    metrics.append(3, {"loss": 3.0})
    metrics.rewind(1)
    metrics.append(2, {"loss": 0.0})
    metrics.close()
    assert metrics.path.read_text().startswith('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n')
    disk.room = None
    metrics.backlog.end()
    assert [(row["step"], row["loss"]) for row in rows(metrics)] == [(1, 1.0), (2, 0.0)]
