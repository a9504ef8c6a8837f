"""``jobs.jsonl`` keeps every event, also after one that a full disk has cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from beni.launch import jobs


def test_half_a_line_swallows_no_event_that_follows(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"event": "subm')
    jobs.note(tmp_path, "submitted", backend="slurm", job="9")
    jobs.note(tmp_path, "submitted", backend="slurm", job="10")
    assert [line["job"] for line in jobs.history(tmp_path)] == ["9", "10"]
    assert len((tmp_path / "jobs.jsonl").read_text().splitlines()) == 3


def test_a_line_that_the_disk_takes_in_part_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = jobs.os.write
    monkeypatch.setattr(jobs.os, "write", lambda file, line: write(file, line[:7]))
    with pytest.raises(OSError, match="No space left"):
        jobs.note(tmp_path, "submitted", backend="slurm", job="9")
    monkeypatch.undo()
    jobs.note(tmp_path, "submitted", backend="slurm", job="10")
    assert [line["job"] for line in jobs.history(tmp_path)] == ["10"]
