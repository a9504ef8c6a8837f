"""Rows of an evaluation on disk while it goes on, so that one that is killed goes on where it was.

Rows are written in groups, each of which is one batch: a batch decides the last digits of what is in it, so what comes
after a restart must be the batches that would have come anyway. Each process of an evaluation writes a file of its own,
a group a line with the group's number; whatever processes go on read what any have written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from beni.errors import ResourceError, ResumeError
from beni.runs.files import SCORES, SUMMARY, journal_name, journals_in, read_json, replace, to_json
from beni.runs.lock import in_use, lock_of
from beni.runs.shape import Must, misfit

Rows = list[dict[str, Any]]
_HEAD = {"settings": Must({})}
_GROUP = {"group": Must(int), "rows": Must([{}])}


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Around what an evaluation writes.

    Raises:
        ResourceError: when it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written: {error}\n  fix: free disk space, or name another folder with --out"
        ) from error


class Journal:
    """What one process adds to an evaluation that is under way, or is to begin.

    Args:
        folder: of the evaluation; it is there.
        settings: all that decides the rows.
        rank: of the process.
        before: group -> its rows, of those that were done when the processes began (``read_journals``).

    Attributes:
        before: as given.
        groups: what this process has added.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int, before: Mapping[int, Rows]) -> None:
        self.path = folder / journal_name(rank)
        self.before = before
        self.groups: dict[int, Rows] = {}
        whole = self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0
        if whole:
            with written(self.path):
                os.truncate(self.path, whole)  # a killed process may have written half a line
        else:
            with written(self.path):
                self.path.write_text(json.dumps({"settings": dict(settings)}, ensure_ascii=False) + "\n", "utf-8")

    def add(self, group: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows of a group; once this returns, a kill does not lose them."""
        text = json.dumps({"group": group, "rows": rows}, ensure_ascii=False)
        with written(self.path), self.path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.groups[group] = json.loads(text)["rows"]


def opened(folder: Path, settings: Mapping[str, Any], held: ExitStack) -> tuple[dict[str, Any] | None, dict[int, Rows]]:
    """Makes the folder of an evaluation the first process's own until ``held`` ends.

    Args:
        settings: all that decides the rows.

    Returns:
        The summary of an evaluation that is finished, or None; and what processes have scored before (group -> rows).

    Raises:
        ResumeError: when others work in it, or it holds another evaluation.
        ResourceError: when it cannot be written.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if in_use(folder) or any(in_use(path) for path in journals_in(folder)):
        raise ResumeError(f"{folder}: another process evaluates into it\n  fix: wait for it, or name another --out")
    held.enter_context(lock_of(folder))
    known, _ = read_json(folder / SUMMARY)
    if known.get("settings") == settings:
        remove_journals(folder)
        return known, {}
    return None, read_journals(folder, settings)


def read_journals(folder: Path, settings: Mapping[str, Any]) -> dict[int, Rows]:
    """Group -> its rows, of all groups that any process has written into a folder.

    Raises:
        ResumeError: when the folder holds another evaluation, or a journal is damaged.
    """
    fix = f"remove {folder} to begin anew, or name another folder with --out"
    groups: dict[int, Rows] = {}
    for path in journals_in(folder):
        lines = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line break was being written
        for number, line in enumerate(lines, 1):
            try:
                told = json.loads(line)
                problem = misfit(told, _GROUP if number > 1 else _HEAD)
            except ValueError:
                told, problem = {}, "it is not JSON"
            if problem is not None:
                raise ResumeError(f"{path}: line {number} is damaged: {problem}\n  fix: {fix}")
            if number > 1:
                groups[told["group"]] = told["rows"]
            elif told["settings"] != settings:
                differ = unlike(settings, told["settings"])
                raise ResumeError(f"{folder} holds another evaluation: {differ} differ\n  fix: {fix}")
    return groups


def unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Names of the settings in which two evaluations differ."""
    return ", ".join(sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)))


def finish(folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Writes scores.jsonl and summary.json in the place of the journals."""
    with written(folder):
        replace(folder / SCORES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        replace(folder / SUMMARY, to_json(summary) + "\n")
    remove_journals(folder)


def remove_journals(folder: Path) -> None:
    """Removes what a finished evaluation does not need, or what a kill at its very end has left."""
    for path in journals_in(folder):
        path.unlink(missing_ok=True)
        Path(lock_of(path).lock_file).unlink(missing_ok=True)
