"""Rows of an evaluation on disk while it goes on, so that one that is killed goes on where it was.

Rows are written in groups, each of which is one batch: a batch decides the last digits of what is in it, so what comes
after a restart must be the batches that would have come anyway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beni.errors import ResumeError
from beni.runs.files import JOURNAL, PROGRESS, SCORES, SUMMARY, read_json, replace, to_json
from beni.runs.shape import Must

_SHAPE = {"settings": Must({}), "groups": Must(int), "bytes": Must(int)}


class Journal:
    """The rows of an evaluation that is under way, or is to begin.

    Args:
        folder: of the evaluation; it is there.
        settings: all that decides the rows.

    Attributes:
        groups: that are done; the evaluation goes on with the one of this number.
        rows: of them, in order.

    Raises:
        ResumeError: when the folder holds another evaluation, or rows of it are gone.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.path = folder / JOURNAL
        self.groups, self._bytes = 0, 0
        self.rows: list[dict[str, Any]] = []
        if (folder / PROGRESS).exists():
            self._go_on()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows of the next group; once this returns, a kill does not lose them."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._bytes)  # what a killed process has written and not counted
            file.seek(self._bytes)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(text)
        self.groups += 1
        self.rows += [json.loads(line) for line in text.splitlines()]
        told = {"settings": self.settings, "groups": self.groups, "bytes": self._bytes}
        replace(self.folder / PROGRESS, to_json(told))

    def close(self, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        """Writes scores.jsonl and summary.json in the place of the journal."""
        replace(self.folder / SCORES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        replace(self.folder / SUMMARY, to_json(summary) + "\n")
        self.path.unlink(missing_ok=True)
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _go_on(self) -> None:
        told, problem = read_json(self.folder / PROGRESS, _SHAPE)
        fix = f"remove {self.folder} to begin anew, or name another folder with --out"
        if problem is not None:
            raise ResumeError(f"{self.folder}: {problem}\n  fix: {fix}")
        if told["settings"] != self.settings:
            ours, theirs = self.settings, told["settings"]
            differ = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
            raise ResumeError(
                f"{self.folder} holds another evaluation: {', '.join(sorted(differ))} differ\n  fix: {fix}"
            )
        content = self.path.read_bytes()[: told["bytes"]] if self.path.exists() else b""
        if len(content) < told["bytes"]:
            raise ResumeError(f"{self.path} has lost rows that were counted\n  fix: {fix}")
        self.groups, self._bytes = told["groups"], told["bytes"]
        self.rows = [json.loads(line) for line in content.splitlines()]
