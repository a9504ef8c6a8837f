"""Which pictures of a run are bad, for good: kept in its folder, so that a resumed run does as the first one did."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from beni.errors import ResourceError


class Verdicts:
    """URL -> why it is bad. Every process of a run appends to a file of its own and reads those of the others.

    Args:
        folder: of the run; None keeps verdicts in memory.
        rank: of this process among those that train.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._known: dict[str, str] = {}
        self._read: dict[str, int] = {}

    def reason(self, url: str) -> str | None:
        """Why a picture is bad; None while nobody has found it so."""
        if url not in self._known and self.folder is not None:
            self._refresh(self.folder)
        return self._known.get(url)

    def give(self, url: str, reason: str) -> None:
        """Decides; on disk before anybody acts on it.

        Raises:
            ResourceError: when the disk does not take it: a run that resumes could decide otherwise.
        """
        self._known[url] = reason
        if self.folder is not None:
            path = self.folder / f"rank{self.rank}-{os.getpid()}.jsonl"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"url": url, "reason": reason}) + "\n")
            except OSError as error:
                raise ResourceError(
                    f"{path} could not be written: {error}; it records which images are bad\n"
                    "  fix: free disk space; the same command resumes from the newest checkpoint"
                ) from error

    def _refresh(self, folder: Path) -> None:
        """Reads what has been added since the last look."""
        try:
            found = [(entry.name, entry.stat().st_size) for entry in os.scandir(folder) if entry.name[0] != "."]
        except OSError:
            return
        for name, size in found:
            done = self._read.get(name, 0)
            if size <= done:
                continue
            with (folder / name).open("rb") as file:
                file.seek(done)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]  # another process may be in the middle of a line
            self._read[name] = done + len(whole)
            for line in whole.splitlines():
                try:
                    row: dict[str, Any] = json.loads(line)
                except ValueError:
                    continue  # torn when its process was killed; nobody has acted on it
                self._known.setdefault(row["url"], row["reason"])
