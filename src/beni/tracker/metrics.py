"""metrics.jsonl, the truth about how a run went: one JSON object a line, ``{"step": 10, "loss": 2.3, ...}``.

data_errors.jsonl, the pictures that could not be had, is kept in the same way.

A line is flushed as it is written, so a killed run loses at most the line it was writing. JSON has no NaN: a value that
is not finite is written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsFile:
    """The one writer of a run's metrics.jsonl; only rank 0 makes one.

    Args:
        path: of the file. It is created by the first line; lines that are there stay until ``rewind``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line. After a crash ``rewind`` comes first, else the line continues a half-written one."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        finite = {
            key: value if isinstance(value, str) or math.isfinite(value) else None for key, value in values.items()
        }
        # `float` serves scalars of numpy and torch, which json does not know.
        self._file.write(json.dumps({"step": step, **finite}, default=float, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Removes the lines after ``step``, which a resumed run writes again, and those that are no JSON object.

        The file is replaced in one move: killed at any moment, it is either the old or the new one.
        """
        self.close()
        if not self.path.exists():
            return
        # Bytes, because a crash may leave half a UTF-8 character or, after a power cut, a block of zeros.
        kept = [line for line in self.path.read_bytes().splitlines() if _step(line) <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("wb") as file:
            file.writelines(line + b"\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _step(line: bytes) -> float:
    """The step of a line, infinite where there is none to read. A truncated object never parses: it lacks its brace."""
    try:
        row = json.loads(line)
    except ValueError:
        return math.inf
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else math.inf
