"""A folder of pictures, each with a file of the same name beside it that holds its text, or its fields as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from beni.data.records.base import Row, Rows
from beni.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".caption")
FIELDS = ".json"


class FolderRows(Rows):
    """``{"image": path, "text": ...}`` for each picture with a text, in the order of their paths; fields of a JSON
    file stand beside ``image``.

    Raises:
        DataError: when there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sorted(_pairs(folder))
        if not found:
            raise DataError(
                f"data.path={folder} holds no picture ({', '.join(PICTURES)}) with a text of the same name beside it "
                f"({', '.join((*TEXTS, FIELDS))})\n"
                "  fix: for files of records set data.path to a pattern, such as 'folder/*.parquet' or 'folder/*.tar'"
            )
        # names below the folder in two arrow columns: half a million pairs of paths would be 300 MB in every worker
        self._pictures, self._texts = (pa.array(names, pa.string()) for names in zip(*found, strict=True))
        self._digest = ""

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> Row:
        picture, text = self._at(self._pictures, number), self._at(self._texts, number)
        try:
            said = text.read_text(encoding="utf-8")
            if text.suffix != FIELDS:
                return {"image": str(picture), "text": said.strip()}
            fields = json.loads(said)
        except ValueError as error:
            raise DataError(f"{text}: {error}\n  fix: mend the file, or remove it") from error
        if not isinstance(fields, dict):
            raise DataError(f"{text} holds a {type(fields).__name__}, expected an object\n  fix: mend the file")
        return {"image": str(picture), **fields}

    def where(self, number: int) -> str:
        return str(self._at(self._pictures, number))

    def fingerprint(self) -> str:
        """A hash of names, of sizes of pictures and of the texts: pictures are not read, which would take an hour."""
        if not self._digest:
            digest = hashlib.sha256()
            for number in range(len(self)):
                picture = self._at(self._pictures, number)
                digest.update(f"{picture.relative_to(self.folder)} {picture.stat().st_size} ".encode())
                digest.update(self._at(self._texts, number).read_bytes())
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def _at(self, names: pa.StringArray, number: int) -> Path:
        return self.folder / names[number].as_py()


def _pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """(picture, text) by their names below the folder."""
    for place, _, files in os.walk(folder):
        below = os.path.relpath(place, folder)
        there = set(files)
        for file in files:
            stem, ending = os.path.splitext(file)
            if ending.lower() in PICTURES:
                text = next((stem + one for one in (*TEXTS, FIELDS) if stem + one in there), None)
                if text is not None:
                    yield os.path.normpath(os.path.join(below, file)), os.path.normpath(os.path.join(below, text))
