"""Which split and subset a file belongs to, by its name, as the Hugging Face hub lays out a data set.

``data/train-00000-of-00004.parquet``, ``test.jsonl``, ``validation/0001.tar``; a subset is a folder. Only folders that
a pattern has found count: those that ``data.path`` names itself were chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from beni.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words that names of files and folders have for it, as ``datasets`` reads them."""
MAGIC = re.compile(r"[*?\[{]")


def canonical(name: str) -> str:
    """A split by its usual name: ``val`` is ``validation``."""
    return next((split for split, words in SPLITS.items() if name.lower() in words), name)


def split_of(name: str) -> str | None:
    """The split that a path below a pattern's fixed part names; None where it names none, or several."""
    *folders, file = Path(name).parts
    stem = file.partition(".")[0]
    if sharded := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem):
        stem = sharded[1]
    words = [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if canonical(word) in SPLITS]
    found = {canonical(word) for word in words}
    if len(found) == 1:
        return stem if sharded and stem.lower() not in words else found.pop()
    below = [folder for folder in folders if canonical(folder) in SPLITS]
    return canonical(below[-1]) if below and not found else None


def choose(path: str, files: Sequence[Path], subset: str | None, split: str | None) -> tuple[list[Path], list[str]]:
    """The files of a subset and split, and what is to be said of those left out.

    Args:
        path: as ``data.path`` gives it, with its patterns.
        split: None takes files whatever their names say.

    Raises:
        DataError: when there is no such subset or split; says which there are.
    """
    chosen = list(files) if subset is None else [file for file in files if subset in file.parts[:-1]]
    if not chosen:
        raise DataError(
            f"data.subset={subset}: no file of data.path={path} lies in a folder of this name\n"
            "  fix: set data.subset=null, or data.path to the files of that subset"
        )
    if split is None:
        return chosen, []
    base = _fixed(path)
    by_file = {file: split_of(str(file.relative_to(base))) for file in chosen}
    kept = pick(f"data.path={path}", [by_file[file] for file in chosen], split)
    left = Counter(one for file, one in by_file.items() if one != kept)
    said = [
        f"data.path={path}: {_files(count)} of the split {one} left out" for one, count in sorted(left.items(), key=str)
    ]
    return [file for file in chosen if by_file[file] == kept], said


def pick(what: str, there: Sequence[str | None], split: str) -> str | None:
    """The split to keep, of those that there are; None where nothing names one, which is what ``train`` means then.

    Args:
        what: how errors call what the splits are of.
        there: the split of each file, None for a file whose name says nothing.

    Raises:
        DataError: when it is not among them, or some files name a split and others none.
    """
    named = sorted({one for one in there if one is not None})
    if named and None in there:
        raise DataError(
            f"data.split={split}: {what} has {_files(sum(one is None for one in there))} whose names give no split, "
            f"beside files of {', '.join(named)}\n"
            "  fix: set data.path to a pattern that matches one kind, or data.split=null to take all files"
        )
    if not named and canonical(split) == "train":
        return None
    wanted = split if split in named else canonical(split)
    if wanted not in named:
        says = f"has the split{'s' * (len(named) > 1)} {', '.join(named)}" if named else "names no splits"
        fix = f"set data.split={'train' if 'train' in named or not named else named[0]}"
        raise DataError(f"data.split={split}: {what} {says}\n  fix: {fix}, or data.split=null to take all files")
    return wanted


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _fixed(path: str) -> Path:
    """The folder that a path names before its first pattern."""
    parts = Path(path).expanduser().parts
    first = next((number for number, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    return Path(*parts[:first])
