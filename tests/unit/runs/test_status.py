"""status.json has one writer and one reader."""

from __future__ import annotations

import json

import pytest

from beni.errors import DataError, Preempted
from beni.runs.status import ending, first_line, is_finished, read_status, read_status_or_why, write_status


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_status_reads_back_with_when_it_was_written(tmp_path):
    write_status(tmp_path, state="running", step=3)
    assert read_status(tmp_path) | {"updated": None} == {"state": "running", "step": 3, "updated": None}
    assert not is_finished(tmp_path)
    write_status(tmp_path, state="finished")
    assert is_finished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "status.json cannot be read (No such file or directory)"),
        ('{"sta', "status.json is not complete JSON"),
        ("[1]", "status.json is damaged: it is [1], expected an object"),
        (
            '{"state": "done"}',
            "status.json is damaged: state is 'done', expected one of dropped, failed, finished, preempted, queued, "
            "running",
        ),
        ('{"state": "running", "step": "3"}', "status.json is damaged: step is '3', expected a whole number"),
    ],
)
def test_one_that_cannot_be_read_is_empty_and_says_why(tmp_path, text, why):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    assert read_status_or_why(tmp_path) == ({}, why)
    assert not is_finished(tmp_path)


@pytest.mark.parametrize(
    ("error", "state", "traced"),
    [
        (raised(DataError("no such file\n  fix: x")), "failed", True),
        (DataError("brought back by a launcher"), "failed", False),
        (raised(Preempted("SIGTERM after step 3")), "preempted", False),
        (raised(KeyboardInterrupt()), "preempted", False),
    ],
)
def test_an_error_ends_a_run_as_failed_or_preempted(error, state, traced):
    end = ending(error)
    assert (end["state"], end["error"]["type"]) == (state, type(error).__name__)
    assert end["error"]["traceback"].startswith("Traceback") == traced
    assert first_line(json.loads(json.dumps(end))) == (str(error).splitlines() or [type(error).__name__])[0]
