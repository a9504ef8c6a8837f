"""Opening records by what a path is.

JSON and JSON lines, parquet, arrow, csv, WebDataset tars, folders of pictures with texts beside them, sets of the
Hugging Face hub.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from beni.data.records import table
from beni.data.records.base import First, Joined, Rows
from beni.data.records.folder import FolderRows
from beni.data.records.json import JsonRows
from beni.data.records.tar import TarRows
from beni.errors import DataError


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
    if path is None:
        raise DataError(
            "data.path is null\n  fix: set data.path; the head of the option's file in conf/data says what to fetch"
        )
    if rows is not None and rows < 1:
        raise DataError(f"data.rows={rows}, expected at least 1\n  fix: set data.rows=null to take all")
    if path.startswith(table.HUB):
        return table.from_hub(path.removeprefix(table.HUB), subset, split, rows)
    files = expand(path)
    if not files:
        raise DataError(f"data.path={path} does not exist\n  fix: set data.path to a file, a folder or a pattern")
    if rows is not None and {file.suffix.lower() for file in files} <= table.BUILDERS.keys():
        return table.first_of_files(files, rows)
    opened = _in_place(path, files, split)
    return opened if rows is None else First(opened, rows)


def _in_place(path: str, files: Sequence[Path], split: str) -> Rows:
    """All records of files that are there."""
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return table.from_saved(folder, split) if saved else FolderRows(folder)
    endings = {file.suffix.lower() for file in files}
    if len(endings) > 1:
        raise DataError(
            f"data.path={path} matches files of several kinds: {', '.join(sorted(endings))}\n"
            "  fix: set data.path to a pattern that ends as the files do, such as 'folder/*.parquet'"
        )
    ending = endings.pop()
    if ending == ".tar":
        return TarRows(files)
    if ending in table.BUILDERS:
        return table.from_files(files)
    if ending in (".json", ".jsonl"):
        parts = [JsonRows(file) for file in files]
        return parts[0] if len(parts) == 1 else Joined(parts)
    known = ", ".join([".json", ".jsonl", *table.BUILDERS, ".tar"])
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
