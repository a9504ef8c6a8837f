"""Rows: records at random access, whatever they lie in. What they mean is a format's business (data/formats/table.py).

Memory stays bounded: files are mapped or read piece by piece, and where records begin is found once and kept in the
cache.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

Row = dict[str, Any]
WHOLE = 1 << 30
"""Bytes of all files together up to which a fingerprint reads everything, in about a second."""
EDGE = 1 << 16
"""Bytes at both ends of a file that a fingerprint reads otherwise."""


class Rows(ABC):
    """Records by number. Can be pickled; handles are opened by the process that reads.

    Attributes:
        notices: what a person should know of files that were left out.
        title: how notices and errors call what the records lie in.
    """

    notices: Sequence[str] = ()
    title: str

    @abstractmethod
    def __len__(self) -> int:
        """Records."""

    @abstractmethod
    def __getitem__(self, number: int) -> Row:
        """Record ``number`` from 0.

        Raises:
            DataError: when it cannot be read; names its place.
        """

    @abstractmethod
    def where(self, number: int) -> str:
        """Its place, for errors: ``data.json, record 12``."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the content changes."""

    @abstractmethod
    def has(self, column: str) -> bool:
        """Whether any record has a field of this name."""


def any_has(rows: Rows, column: str) -> bool:
    """``Rows.has`` where nothing but the records knows; reads them until it finds one."""
    return any(column in rows[number] for number in range(len(rows)))


class Joined(Rows):
    """Several, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self.notices = [text for part in self.parts for text in part.notices]
        self.title = self.parts[0].title
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Row:
        part, own = self._find(number)
        return part[own]

    def where(self, number: int) -> str:
        part, own = self._find(number)
        return part.where(own)

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]

    def has(self, column: str) -> bool:
        return any(part.has(column) for part in self.parts)

    def _find(self, number: int) -> tuple[Rows, int]:
        which = min(bisect_right(self._ends, number), len(self.parts) - 1)
        return self.parts[which], number - (self._ends[which - 1] if which else 0)


class First(Rows):
    """The first few of others, read in place."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.rows, self.count = rows, min(count, len(rows))
        self.notices, self.title = rows.notices, rows.title

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]

    def where(self, number: int) -> str:
        return self.rows.where(number)

    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint()}-{self.count}"

    def has(self, column: str) -> bool:
        return any_has(self, column)


def files_fingerprint(files: Sequence[Path]) -> str:
    """A hash of names and contents; where they are more than ``WHOLE`` together, of names, sizes, and the first and
    last 64 KiB of each, as a pass over terabytes takes hours: a change that keeps all of those is not seen.
    """
    digest = hashlib.sha256()
    sizes = [file.stat().st_size for file in files]
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            if sum(sizes) <= WHOLE:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(EDGE))
                stream.seek(max(0, size - EDGE))
                digest.update(stream.read())
    return digest.hexdigest()[:16]
