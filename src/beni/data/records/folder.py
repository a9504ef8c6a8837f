"""A folder of pictures, each with files of the same name beside it that hold its text, or its fields as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from beni.data.records.base import Row, Rows, any_has
from beni.data.records.splits import SPLITS, canonical, pick
from beni.errors import DataError

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
"""Endings of files that Pillow decodes, in either case."""
UNREAD = (".heic", ".heif", ".svg", ".psd", ".raw", ".dng", ".jxl", ".mp4", ".webm", ".mov", ".mp3", ".wav", ".flac")
"""Endings of files that somebody may take for pictures, or wish to be read."""
TEXTS = (".txt", ".caption")
FIELDS = ".json"


class FolderRows(Rows):
    """``{"image": path, "text": ...}`` for each picture with a text, in the order of their paths; fields of a JSON
    file stand beside them. Links to folders are followed. ``notices`` say how many files were left out, and why.

    Args:
        split: where folders directly below are called ``train``, ``test`` and so on, the one to take; None takes all.

    Raises:
        DataError: when there is no picture with a text, or no such split.
    """

    def __init__(self, folder: Path, split: str | None) -> None:
        self.folder, self.title = folder, str(folder)
        walk = _Walk(folder)
        found = sorted(walk.found())
        if found and split is not None:
            there = {name: _split_of(name) for name, *_ in found}
            kept = pick(str(folder), list(there.values()), split)
            for name, own in there.items():
                if own != kept:
                    walk.leave(f"of the split {own}", name)
            found = [names for names in found if there[names[0]] == kept]
        if not found:
            raise DataError(
                f"data.path={folder} holds no image ({', '.join(PICTURES)}) with a text of the same name beside it "
                f"({', '.join((*TEXTS, FIELDS))}){''.join(f'; {text}' for text in walk.said())}\n"
                "  fix: for files of records set data.path to a pattern, such as 'folder/*.parquet' or 'folder/*.tar'"
            )
        self.notices = [f"{folder}: {text}" for text in walk.said()]
        # names below the folder in arrow columns: half a million pairs of paths would be 300 MB in every worker
        self._pictures, self._texts, self._fields = (pa.array(names, pa.string()) for names in zip(*found, strict=True))
        self._digest = ""

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> Row:
        picture, row = self._at(self._pictures, number), {}
        if text := self._at(self._texts, number):
            row["text"] = _read(text).strip()
        if beside := self._at(self._fields, number):
            try:
                fields = json.loads(_read(beside))
            except json.JSONDecodeError as error:
                raise DataError(f"{beside}: {error}\n  fix: correct the file, or remove it") from error
            if not isinstance(fields, dict):
                raise DataError(
                    f"{beside} holds a {type(fields).__name__}, expected an object\n  fix: correct the file"
                )
            _require_agreement(beside, fields, {"image": picture, **row})
            row = {**fields, **row}
        return {**row, "image": str(picture)}

    def where(self, number: int) -> str:
        return str(self._at(self._pictures, number))

    def has(self, column: str) -> bool:
        return any_has(self, column)

    def fingerprint(self) -> str:
        """A hash of names, of sizes of pictures and of the texts: pictures are not read, which would take an hour."""
        if not self._digest:
            digest = hashlib.sha256()
            for number in range(len(self)):
                picture = self._at(self._pictures, number)
                assert picture is not None
                digest.update(f"{picture.relative_to(self.folder)} {picture.stat().st_size} ".encode())
                for beside in (self._at(self._texts, number), self._at(self._fields, number)):
                    if beside is not None:
                        digest.update(beside.read_bytes())
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def _at(self, names: pa.StringArray, number: int) -> Path | None:
        name = names[number].as_py()
        return None if name is None else self.folder / name


@dataclass
class _Walk:
    """Goes through a folder once, and remembers what it left out."""

    folder: Path
    left: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)

    def found(self) -> Iterator[tuple[str, str | None, str | None]]:
        """(picture, text, fields) by their names below the folder, of every picture that has one of both."""
        been: set[str] = set()
        for place, folders, files in os.walk(self.folder, followlinks=True, onerror=self._unreadable):
            real = os.path.realpath(place)
            if real in been:  # by a link back to a folder above, or a second one to the same
                self.leave("in a link to a folder that was already read", place)
                folders.clear()
                continue
            been.add(real)
            below = os.path.relpath(place, self.folder)
            yield from self._pictures(below, files)

    def leave(self, why: str, name: str) -> None:
        """Counts a file that is left out."""
        self.left[why] += 1
        self.example.setdefault(why, name)

    def said(self) -> list[str]:
        """A sentence for each reason that something was left out for."""
        return [
            f"{count} file{'s' * (count != 1)} left out ({why}): {self.example[why]}{' ...' if count > 1 else ''}"
            for why, count in self.left.items()
        ]

    def _unreadable(self, error: OSError) -> None:
        self.leave(f"in a folder that cannot be read ({error.strerror})", str(error.filename))

    def _pictures(self, below: str, files: list[str]) -> Iterator[tuple[str, str | None, str | None]]:
        beside: dict[tuple[str, str], str] = {}
        pictures, used = [], set[str]()
        for file in sorted(files):
            name = os.path.normpath(os.path.join(below, file))
            stem, ending = os.path.splitext(file)
            ending = ending.lower()
            if not _is_utf8(name):
                self.leave("whose names are not UTF-8", name.encode(errors="backslashreplace").decode())
            elif ending in PICTURES:
                pictures.append((stem, name))
            elif ending in (*TEXTS, FIELDS) and (stem, ending) not in beside:
                beside[stem, ending] = name
            elif ending in (*TEXTS, FIELDS):
                self.leave(f"beside {beside[stem, ending]}", name)
            elif ending in UNREAD:
                self.leave(f"beni cannot decode {ending}", name)
        for stem, picture in pictures:
            texts = [beside[stem, ending] for ending in TEXTS if (stem, ending) in beside]
            fields = beside.get((stem, FIELDS))
            used.update((*texts, *([fields] if fields else [])))
            for other in texts[1:]:
                self.leave(f"beside a {TEXTS[0]} of the same name", other)
            if texts or fields:
                yield picture, texts[0] if texts else None, fields
            else:
                self.leave(f"with no text of the same name ({', '.join((*TEXTS, FIELDS))})", picture)
        for name in beside.values():
            if name not in used:
                self.leave("with no image of the same name", name)


def _split_of(name: str) -> str | None:
    """The split that the first folder of a name is called by."""
    first, *more = Path(name).parts
    return canonical(first) if more and canonical(first) in SPLITS else None


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(file: Path) -> str:
    """A text without the byte order mark that some editors begin it with.

    Raises:
        DataError: when it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: {error}\n  fix: write it as UTF-8 (iconv -t UTF-8), or remove it") from error


def _require_agreement(file: Path, fields: dict[str, Any], lies: dict[str, Any]) -> None:
    """Return when fields do not say otherwise than what lies beside them.

    Raises:
        DataError: when they name another picture, or have another text.
    """
    for name, value in lies.items():
        said = fields.get(name)
        same = Path(str(said)).name == value.name if isinstance(value, Path) else str(said).strip() == value
        if said is not None and not same:
            raise DataError(
                f"{file}: its field {name!r} is {str(said)[:60]!r}, but the file beside it says {str(value)[:60]!r}\n"
                "  fix: remove the field, or the file that disagrees"
            )
