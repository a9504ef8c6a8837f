"""status.json says how a run ended, whoever has to write it."""

from __future__ import annotations

import json

import pytest

from beni.errors import DataError, Preempted
from beni.tracker.folder import RunFolder


def status(folder):
    return json.loads((folder.path / "status.json").read_text())


@pytest.mark.parametrize(
    ("error", "state"),
    [(Preempted("SIGTERM after step 3"), "preempted"), (KeyboardInterrupt(), "preempted"), (DataError("no"), "failed")],
)
def test_how_a_run_ended_is_noted(tiny_run, error, state):
    folder = RunFolder(tiny_run(), writes=True)
    with pytest.raises(type(error)), folder.opened():
        raise error
    said = status(folder)
    assert (said["state"], said["error"]["type"]) == (state, type(error).__name__)
    assert said["error"]["traceback"].startswith("Traceback") == (state == "failed")


def test_the_same_command_takes_the_error_away(tiny_run):
    folder = RunFolder(tiny_run(), writes=True)
    with pytest.raises(Preempted), folder.opened():
        raise Preempted("SIGTERM after step 3")
    with RunFolder(tiny_run(), writes=True).opened() as again:
        assert (status(again)["state"], status(again)["error"]) == ("running", None)


def test_any_rank_notes_that_a_run_hangs(tiny_run):
    first, second = RunFolder(tiny_run(), writes=True), RunFolder(tiny_run(), writes=False)
    with first.opened():
        first.update(step=7)
        second.hung("rank 0 hangs in step 8", "in a collective")
        said = status(first)
    assert (said["state"], said["step"]) == ("failed", 7)
    assert said["error"] == {"type": "Hang", "message": "rank 0 hangs in step 8", "traceback": "in a collective"}
    assert sorted(path.name for path in first.path.iterdir()) == ["config.yaml", "status.json"]
