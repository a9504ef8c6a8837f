"""``status.json``: how a run is doing. Whoever says something there does it with ``write_status``, in one piece: the
run itself, the watchdog of any rank, and a launcher about an arm whose process cannot.

Keys: ``state`` (``queued | running | preempted | failed | finished | dropped``), ``step``, ``steps``, ``started``,
``updated``, ``error`` (null, or ``type``, ``message`` and ``traceback``), and whatever the run has measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.errors import Preempted
from beni.redact import redacted
from beni.runs import shape
from beni.runs.files import STATUS, read_json, replace, to_json
from beni.runs.identity import now


def read_status(folder: Path) -> dict[str, Any]:
    """The status of the run in ``folder``; empty where there is none to read."""
    return read_status_or_why(folder)[0]


def read_status_or_why(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The status of the run in ``folder``, or an empty one and the sentence that says why there is none to read."""
    return read_json(folder / STATUS, shape.OF_STATUS)


def write_status(folder: Path, **values: Any) -> None:
    """Replaces the status in one piece, and notes when.

    Raises:
        OSError: when the disk does not take it; the status is as it was.
    """
    replace(folder / STATUS, to_json(values | {"updated": now()}))


def is_finished(folder: Path) -> bool:
    """Whether a run in ``folder`` came to its end."""
    return read_status(folder).get("state") == "finished"


def ending(error: BaseException) -> dict[str, Any]:
    """``state`` and ``error`` of a run that ``error`` has ended."""
    if isinstance(error, KeyboardInterrupt | Preempted):
        return {"state": "preempted", "error": _told(error, "")}  # where a signal met the run says nothing
    trace = "".join(traceback.format_exception(error)) if error.__traceback__ is not None else ""
    return {"state": "failed", "error": _told(error, trace)}


def hang(message: str, stack: str) -> dict[str, Any]:
    """``state`` and ``error`` of a run that hangs, with what its main thread was doing."""
    return {"state": "failed", "error": {"type": "Hang", "message": message, "traceback": stack}}


def first_line(status: Mapping[str, Any]) -> str:
    """The reason of a failed run, on one line."""
    error = status.get("error")
    told = error if isinstance(error, Mapping) else {}
    message = str(told.get("message") or "").strip() or str(told.get("type") or "unknown")
    return message.splitlines()[0]


def _told(error: BaseException, trace: str) -> dict[str, str]:
    return {"type": type(error).__name__, "message": redacted(str(error)), "traceback": redacted(trace)}
