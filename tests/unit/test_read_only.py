"""A disk that cannot be written is an error that names the path and what can be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from beni.errors import ResourceError
from beni.launch.submit import freeze_arm
from beni.runs.folder import RunFolder
from support.run_folders import make_run  # noqa: F401


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A place below which no folder can be made, also for root: a file stands there."""
    (tmp_path / "disk").write_text("")
    return tmp_path / "disk" / "runs"


def test_a_run_and_an_arm_name_the_folder_and_paths_runs(tiny_run, read_only):
    run = tiny_run(f"paths.runs={read_only}")
    with pytest.raises(
        ResourceError, match=rf"{read_only}.* could not be written(.|\n)*fix: free disk space, or set paths.runs"
    ):
        RunFolder(run, writes=True).opened().__enter__()
    with pytest.raises(
        ResourceError, match=rf"{read_only}.* could not be written(.|\n)*fix: free disk space, or set paths.runs"
    ):
        freeze_arm(run)


def test_a_lock_that_cannot_be_made_is_told_in_the_same_way(tiny_run, monkeypatch):
    from filelock import FileLock

    def refuses(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuses)
    with pytest.raises(ResourceError, match="Read-only file system"):
        RunFolder(tiny_run(), writes=True).opened().__enter__()


def test_a_comparison_is_shown_and_its_files_are_an_error(make_run, monkeypatch, capsys):  # noqa: F811
    from beni.compare import main

    study = make_run("none").parent

    def refuses(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", refuses)
    assert main([str(study)]) == 2
    shown = capsys.readouterr()
    assert "accuracy" in shown.out
    assert "could not be written into" in shown.err
    assert "fix: the table above is complete" in shown.err
