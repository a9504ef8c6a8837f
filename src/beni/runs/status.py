"""``status.json`` of an arm whose own process cannot write it: not begun yet, or ended without a word."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

from beni.runs.identity import now


def read_status(folder: Path) -> dict[str, Any]:
    """The status of the run in ``folder``; empty where there is none to read."""
    try:
        return json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_status(folder: Path, **values: Any) -> None:
    """Replaces the status in one piece."""
    partial = folder / ".status.json.partial"
    partial.write_text(json.dumps(values | {"updated": now()}, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, folder / "status.json")


def failure(error: BaseException) -> dict[str, str]:
    """An exception as ``status.json`` holds it (``runs/folder.py`` writes the same keys)."""
    trace = "".join(traceback.format_exception(error)) if error.__traceback__ is not None else ""
    return {"type": type(error).__name__, "message": str(error), "traceback": trace}


def first_line(status: dict[str, Any]) -> str:
    """The reason of a failed run, on one line."""
    message = str(status["error"]["message"]).strip() or status["error"]["type"]
    return message.splitlines()[0]
