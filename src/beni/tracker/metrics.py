"""metrics.jsonl, the truth about how a run went: one JSON object a line, ``{"step": 10, "loss": 2.3, ...}``.

data_errors.jsonl, the pictures that could not be had, is kept in the same way.

A line is on its way to the disk as soon as it is appended, so a killed run loses at most the line it was writing; lines
that a full disk does not take wait for the next one. JSON has no NaN: a value that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.runs.backlog import Backlog


class MetricsFile:
    """The one writer of a run's metrics.jsonl; only rank 0 makes one.

    Args:
        path: of the file. It is created by the first line; lines that are there stay until ``rewind``.
        backlog: of the run's folder.
    """

    def __init__(self, path: Path, backlog: Backlog) -> None:
        self.path, self.backlog = path, backlog
        self._file: Any = None
        self._closed = False
        self._kept: bytes | None = None
        self._unwritten = bytearray()

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line. After a crash ``rewind`` comes first, else the line continues a half-written one."""
        finite = {
            key: value if isinstance(value, str) or math.isfinite(value) else None for key, value in values.items()
        }
        # `float` serves scalars of numpy and torch, which json does not know.
        line = json.dumps({"step": step, **finite}, default=float, allow_nan=False) + "\n"
        self._unwritten += line.encode()
        self._closed = False
        self.backlog.write(self.path, self._write)

    def rewind(self, step: int) -> int:
        """Removes the lines after ``step``, which a resumed run writes again, and those that are no JSON object.

        The file is replaced in one move: killed at any moment, it is either the old or the new one.

        Returns:
            How many lines were none, but for a last one without its end, which a killed run leaves.
        """
        self.close()
        before = self._kept
        if before is None:
            before = self.path.read_bytes() if self.path.exists() else b""
        if not (before or self._unwritten):
            return 0
        # Bytes, because a crash may leave half a UTF-8 character or, after a power cut, a block of zeros.
        lines = (before + self._unwritten).splitlines()
        whole = lines if (before + self._unwritten).endswith(b"\n") else lines[:-1]
        damaged = sum(1 for line in whole if math.isinf(_step(line)))
        self._kept = b"".join(line + b"\n" for line in lines if _step(line) <= step)
        self._unwritten.clear()
        self.backlog.write(self.path, self._write)
        return damaged

    def _write(self) -> None:
        """What is not on the disk yet; also after it has taken a part of it."""
        if self._kept is not None:
            partial = self.path.with_name(f".{self.path.name}.partial")
            with partial.open("wb") as file:
                file.write(self._kept)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
            self._kept = None
        try:
            while self._unwritten:
                if self._file is None:
                    self._file = self.path.open("ab", buffering=0)
                del self._unwritten[: self._file.write(self._unwritten)]
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """Closes the file; a later line opens it again, and so do lines that wait."""
        self._closed = True
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
