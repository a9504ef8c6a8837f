"""A folder of pictures, each with a file of the same name beside it that holds its text, or its fields as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from beni.data.rows import Row, Rows, files_fingerprint
from beni.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".caption")


class FolderRows(Rows):
    """``{"image": path, "text": ...}`` for each picture with a text, in the order of their paths; fields of a JSON
    file stand beside ``image``.

    Raises:
        DataError: when there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs: list[tuple[Path, Path]] = []
        for picture in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES):
            beside = (picture.with_suffix(ending) for ending in (*TEXTS, ".json"))
            if (text := next((path for path in beside if path.is_file()), None)) is not None:
                self.pairs.append((picture, text))
        if not self.pairs:
            raise DataError(
                f"data.path={folder} holds no picture ({', '.join(PICTURES)}) with a text of the same name beside it "
                f"({', '.join((*TEXTS, '.json'))})"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Row:
        picture, text = self.pairs[number]
        try:
            said = text.read_text(encoding="utf-8")
            if text.suffix != ".json":
                return {"image": str(picture), "text": said.strip()}
            fields = json.loads(said)
        except ValueError as error:
            raise DataError(f"{text}: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{text} holds a {type(fields).__name__}, expected an object")
        return {"image": str(picture), **fields}

    def where(self, number: int) -> str:
        return str(self.pairs[number][0])

    def fingerprint(self) -> str:
        return files_fingerprint([path for pair in self.pairs for path in pair])
