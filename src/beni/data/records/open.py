"""Opening records by what a path is.

JSON and JSON lines, parquet, arrow, csv, WebDataset tars, folders of pictures with texts beside them, sets of the
Hugging Face hub.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from beni.data.records import table
from beni.data.records.base import First, Joined, Rows
from beni.data.records.folder import FolderRows
from beni.data.records.json import JsonRows
from beni.data.records.splits import choose
from beni.data.records.tar import TarRows
from beni.errors import DataError

SHOWN = 5
"""Missing files that an error names."""


def open_rows(
    path: str | None, *, subset: str | None = None, split: str | None = "train", rows: int | None = None
) -> Rows:
    """Records below a path.

    Args:
        path: a file, a folder, a pattern (``*``, ``?``, ``{00..07}``, ``{a,b}``), or ``hf://datasets/owner/name``.
        subset: of a set of the hub, where it has several; of files, the folder that they lie in.
        split: of a set of the hub, of a folder that ``datasets`` has saved, or of files and folders whose names say one
            (``beni.data.records.splits``); None takes files whatever their names say.
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
        if split is None:
            raise DataError(f"data.split=null: {path} is a set of the hub\n  fix: set data.split=train")
        return table.from_hub(path.removeprefix(table.HUB), subset, split, rows)
    files = expand(path)
    if not files:
        raise DataError(f"data.path={path} does not exist\n  fix: set data.path to a file, a folder or a pattern")
    folder = len(files) == 1 and files[0].is_dir()
    if folder and subset is not None:
        raise DataError(
            f"data.subset={subset}: data.path={path} is a folder, which has none\n  fix: set data.subset=null, or "
            f"data.path to a pattern, such as '{path}/{subset}/*.parquet'"
        )
    files, said = (files, []) if folder else choose(path, files, subset, split)
    if rows is not None and {file.suffix.lower() for file in files} <= table.BUILDERS.keys():
        opened = table.first_of_files(files, rows)
    else:
        opened = _in_place(path, files, split)
        opened = opened if rows is None else First(opened, rows)
    if len(opened) == 0:
        raise DataError(f"data.path={path} holds no record\n  fix: set data.path to a file that has some")
    opened.notices = [*said, *opened.notices]
    return opened


def open_with_heldout(
    path: str | None, heldout_path: str | None, *, subset: str | None, split: str | None, rows: int | None
) -> tuple[Rows, Rows | None]:
    """The records of ``data.path``, see ``open_rows``, and those of ``data.heldout_path``: all of its files, whatever
    split their names say; None where it is null.

    Raises:
        DataError: as ``open_rows``.
    """
    if heldout_path is None:
        return open_rows(path, subset=subset, split=split, rows=rows), None
    if heldout_path.startswith(table.HUB):
        raise DataError(
            f"data.heldout_path={heldout_path} is a set of the hub, expected a file or a pattern\n"
            "  fix: download the set, and name the files of its held-out split"
        )
    records = open_rows(path, subset=subset, split=split, rows=rows)
    try:
        return records, open_rows(heldout_path, split=None)
    except DataError as error:
        raise DataError(str(error).replace("data.path", "data.heldout_path")) from error


def require_there(node: Mapping[str, Any], key: str = "data") -> None:
    """Return when the files that a data node names, and those of the sources within it, are there; no record is read,
    and sets of the hub are not asked for.

    Args:
        key: dotted key of the node.

    Raises:
        DataError: naming the key, the place and the fix.
    """
    for name, what in (("path", "a file, a folder or a pattern"), ("heldout_path", "a file"), ("images", "a folder")):
        place = node.get(name)
        if isinstance(place, str) and "://" not in place and not expand(place):
            raise DataError(f"{key}.{name}={place} does not exist\n  fix: set {key}.{name} to {what}")
    for name, source in (node.get("sources") or {}).items():
        require_there(source, f"{key}.sources.{name}")


def _in_place(path: str, files: Sequence[Path], split: str | None) -> Rows:
    """All records of files that are there."""
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return table.from_saved(folder, split) if saved else FolderRows(folder, split)
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
    """The files that a path or pattern names, sorted; braces as WebDataset writes them.

    Raises:
        DataError: when some of the files that braces spell out are missing.
    """
    pieces = re.split(r"(\{[^{}]*\})", str(Path(path).expanduser()))
    alternatives = [_brace(piece) if piece.startswith("{") else [piece] for piece in pieces]
    found: list[Path] = []
    names = ["".join(chosen) for chosen in product(*alternatives)]
    missing = []
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        found += map(Path, matches)
        missing += [] if matches else [name]
    if found and missing:
        raise DataError(
            f"data.path={path}: {len(missing)} of {len(names)} are not there: {', '.join(missing[:SHOWN])}"
            f"{' ...' if len(missing) > SHOWN else ''}\n"
            "  fix: fetch them, or set data.path to a pattern with *, which takes the files that are there"
        )
    return list(dict.fromkeys(found))


def _brace(piece: str) -> list[str]:
    inner = piece[1:-1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return inner.split(",") if "," in inner else [piece]
