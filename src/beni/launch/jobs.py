"""``jobs.jsonl``: what a run was given to, and each of its starts, in order; nothing is ever taken back.

A line has ``event`` and ``time``:

- ``submitted`` by who hands the run over, with ``backend``, ``job`` (an id of the scheduler, or of a process),
  ``logs`` (a pattern of files) and ``code`` (the snapshot's hash);
- ``started`` by the job itself, with ``job``, ``node``, ``attempt`` (0, and one more after each requeue) and ``step``,
  from which it goes on;
- ``ended`` by the job, with ``job``, ``attempt``, ``code`` (its exit code), ``step`` and ``next``: ``requeued`` or why
  it is not.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from beni.runs import shape
from beni.runs.files import JOBS, read_jsonl
from beni.runs.identity import now

Event = Literal["submitted", "started", "ended"]


def note(folder: Path, event: Event, **values: Any) -> None:
    """Appends a line, in one write, after whatever a full disk has left of an earlier one.

    Raises:
        OSError: when the disk does not take it.
    """
    line = (json.dumps({"event": event, "time": now()} | values, ensure_ascii=False) + "\n").encode()
    file = os.open(folder / JOBS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / JOBS))
    finally:
        os.close(file)


def history(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run, oldest first; none where it was never handed over."""
    return read_jsonl(folder / JOBS, shape.OF_JOBS_ROW)[0]


def last(events: Sequence[dict[str, Any]], event: Event) -> dict[str, Any] | None:
    """The newest line of a kind."""
    return next((line for line in reversed(events) if line["event"] == event), None)
