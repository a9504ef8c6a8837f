"""status.json says how a run ended, whoever has to write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beni.errors import DataError, Preempted, ResourceError
from beni.runs.folder import RunFolder


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
    assert sorted(path.name for path in first.path.iterdir()) == ["config.yaml", "origin.json", "status.json"]


@pytest.fixture
def full(monkeypatch):
    """full(True): from now on the disk takes no text."""
    write, is_full = Path.write_text, [False]

    def written(path, *args, **kwargs):
        if is_full[0]:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", written)
    return lambda now: is_full.__setitem__(0, now)


def test_a_full_disk_is_told_of_once_and_what_it_did_not_take_is_written_later(tiny_run, full):
    folder, told = RunFolder(tiny_run(), writes=True), []
    folder.backlog.tell = told.append
    with folder.opened():
        full(True)
        folder.update(step=1)
        folder.write_json("spec.json", {"a": 1})
        folder.update(step=2)
        assert len(told) == 1
        assert "status.json could not be written" in told[0]
        assert status(folder)["step"] == 0
        full(False)
        folder.update(step=3)
    assert status(folder)["step"] == 3
    assert json.loads((folder.path / "spec.json").read_text()) == {"a": 1}


def test_a_full_disk_does_not_stand_in_for_the_error_that_ends_a_run(tiny_run, full):
    folder, told = RunFolder(tiny_run(), writes=True), []
    folder.backlog.tell = told.append
    with pytest.raises(DataError, match="a picture"), folder.opened():  # noqa: PT012
        full(True)
        raise DataError("a picture")
    assert told[-1] == "the run ends; these files are not written: status.json"


def test_a_run_that_ends_with_something_unwritten_says_what_and_what_to_do(tiny_run, full):
    folder = RunFolder(tiny_run(), writes=True)
    with pytest.raises(ResourceError, match=r"not written: status.json\n  fix: free disk space"), folder.opened():  # noqa: PT012
        full(True)
        folder.update(state="finished")


def test_a_folder_that_cannot_be_written_at_all_is_an_error_before_the_run(tiny_run, full):
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        pass
    before = (folder.path / "config.yaml").read_text()
    full(True)
    with pytest.raises(ResourceError, match=r"could not be written: .*No space left.*\n  fix: free disk space"):
        RunFolder(tiny_run(), writes=True).opened().__enter__()
    assert (folder.path / "config.yaml").read_text() == before


def test_a_hang_on_a_full_disk_is_one_that_ends(tiny_run, full):
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        full(True)
        folder.hung("rank 0 hangs in step 8", "in a collective")
        full(False)
        assert status(folder)["state"] == "running"
