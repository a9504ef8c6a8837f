"""Rows: records at random access, whatever they lie in. What they mean is a format's business (data/table.py).

``open_rows`` picks by what a path is: JSON and JSON lines, parquet, arrow, csv, WebDataset tars, folders of pictures
with texts beside them, sets of the Hugging Face hub. Memory stays bounded: files are mapped or read piece by piece, and
where records begin is found once and kept in the cache.
"""

from __future__ import annotations

import glob
import hashlib
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from beni.errors import DataError

Row = dict[str, Any]
HUB = "hf://datasets/"
WHOLE = 1 << 30
"""Bytes of all files together up to which a fingerprint reads everything, in about a second."""
EDGE = 1 << 16
"""Bytes at both ends of a file that a fingerprint reads otherwise."""


class Rows(ABC):
    """Records by number. Can be pickled; handles are opened by the process that reads."""

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


class Joined(Rows):
    """Several, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
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

    def _find(self, number: int) -> tuple[Rows, int]:
        which = min(bisect_right(self._ends, number), len(self.parts) - 1)
        return self.parts[which], number - (self._ends[which - 1] if which else 0)


class First(Rows):
    """The first few of others, read in place."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.rows, self.count = rows, min(count, len(rows))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]

    def where(self, number: int) -> str:
        return self.rows.where(number)

    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint()}-{self.count}"


def open_rows(path: str | None, *, subset: str | None = None, split: str = "train", rows: int | None = None) -> Rows:
    """Records below a path.

    Args:
        path: a file, a folder, a pattern (``*``, ``?``, ``{00..07}``, ``{a,b}``), or ``hf://datasets/owner/name``.
        subset: of a set of the hub, where it has several.
        split: of a set of the hub, or of a folder that ``datasets`` has saved.
        rows: take only the first so many; of sets of the hub, parquet, arrow and csv the rest is neither fetched nor
            read. None takes all.

    Raises:
        DataError: when there is nothing, or nothing that can be read; names ``data.path`` and the fix.
    """
    from beni.data import rows_table

    if path is None:
        raise DataError(
            "data.path is null\n  fix: set data.path; the head of the option's file in conf/data says what to fetch"
        )
    if rows is not None and rows < 1:
        raise DataError(f"data.rows={rows}, expected at least 1\n  fix: set data.rows=null to take all")
    if path.startswith(HUB):
        return rows_table.from_hub(path.removeprefix(HUB), subset, split, rows)
    files = expand(path)
    if not files:
        raise DataError(f"data.path={path} does not exist\n  fix: set data.path to a file, a folder or a pattern")
    if rows is not None and {file.suffix.lower() for file in files} <= rows_table.BUILDERS.keys():
        return rows_table.first_of_files(files, rows)
    opened = _in_place(path, files, split)
    return opened if rows is None else First(opened, rows)


def _in_place(path: str, files: Sequence[Path], split: str) -> Rows:
    """All records of files that are there."""
    from beni.data import rows_folder, rows_json, rows_table, rows_tar

    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return rows_table.from_saved(folder, split) if saved else rows_folder.FolderRows(folder)
    endings = {file.suffix.lower() for file in files}
    if len(endings) > 1:
        raise DataError(
            f"data.path={path} matches files of several kinds: {', '.join(sorted(endings))}\n"
            "  fix: set data.path to a pattern that ends as the files do, such as 'folder/*.parquet'"
        )
    ending = endings.pop()
    if ending == ".tar":
        return rows_tar.TarRows(files)
    if ending in rows_table.BUILDERS:
        return rows_table.from_files(files)
    if ending in (".json", ".jsonl"):
        parts = [rows_json.JsonRows(file) for file in files]
        return parts[0] if len(parts) == 1 else Joined(parts)
    known = ", ".join([".json", ".jsonl", *rows_table.BUILDERS, ".tar"])
    raise DataError(
        f"data.path={path} is a {ending or 'file without ending'}; expected {known}, or a folder\n"
        "  fix: set data.path to such a file"
    )


def expand(path: str) -> list[Path]:
    """The files that a path or pattern names, sorted; braces as WebDataset writes them."""
    pieces = re.split(r"(\{[^{}]*\})", str(Path(path).expanduser()))
    alternatives = [_brace(piece) if piece.startswith("{") else [piece] for piece in pieces]
    found: list[Path] = []
    for chosen in product(*alternatives):
        name = "".join(chosen)
        found += [Path(name)] if Path(name).exists() else [Path(one) for one in sorted(glob.glob(name, recursive=True))]
    return list(dict.fromkeys(found))


def _brace(piece: str) -> list[str]:
    inner = piece[1:-1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return inner.split(",") if "," in inner else [piece]


def files_fingerprint(files: Sequence[Path]) -> str:
    """Of names and contents; where they are more than ``WHOLE`` together, of names, sizes, and the first and last
    64 KiB of each, as a pass over terabytes takes hours: a change that keeps all of those is not seen.
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
