"""``jobs.jsonl``: what a run was given to, and each of its starts, in order; nothing is ever taken back.

A line has ``event`` and ``time``:

- ``submitted`` by who hands the run over, with ``backend``, ``job`` (an id of the scheduler, or the process of a sweep
  on this machine), ``logs`` (a pattern of files) and ``code`` (the snapshot's hash);
- ``started`` by the job, with ``job`` (the same id, or the run's own process), ``node``, ``attempt`` (0, and one more
  after each requeue) and ``step``, from which it goes on;
- ``ended`` by the job, with ``job``, ``attempt``, ``code`` (its exit code), ``step`` and ``next``: ``requeued`` or why
  it is not. With the ``job`` of a sweep it says that the sweep will not start the run, and ``next`` why.

Where ``job`` is a process, ``node`` and ``born`` say which one (launch/processes.py).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from beni.runs import shape
from beni.runs.files import JOBS, read_jsonl
from beni.runs.identity import now

Event = Literal["submitted", "started", "ended"]

CANCELLED = "cancelled before it began"
"""Why a sweep does not start a run that ``beni.launch cancel`` has named."""


@dataclass(frozen=True)
class Turn:
    """What has happened since a run was handed over last; None for what has not.

    Args:
        submitted: who was given the run; None where it has never been handed over.
        started: the newest start.
        ended: how that start has ended, or why there will be none.
    """

    submitted: dict[str, Any] | None
    started: dict[str, Any] | None
    ended: dict[str, Any] | None

    @staticmethod
    def of(events: Sequence[dict[str, Any]]) -> Turn:
        """The newest turn in the lines of a run."""
        submitted, events = _after("submitted", events)
        started, rest = _after("started", events)
        begun = started or submitted or {}
        ended = next((line for line in rest if line["event"] == "ended" and line.get("job") == begun.get("job")), None)
        return Turn(submitted, started, ended)


def is_called_off(events: Sequence[dict[str, Any]], job: str) -> bool:
    """Whether ``job``, which was given a run, has been told not to start it."""
    _, since = _after("submitted", events)
    return any(line["event"] == "ended" and line.get("job") == job and line.get("next") == CANCELLED for line in since)


def _after(event: Event, events: Sequence[dict[str, Any]]) -> tuple[dict[str, Any] | None, Sequence[dict[str, Any]]]:
    """The newest line of a kind and the lines after it; None and all lines where there is none."""
    where = next((index for index in reversed(range(len(events))) if events[index]["event"] == event), None)
    return (None, events) if where is None else (events[where], events[where + 1 :])


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
