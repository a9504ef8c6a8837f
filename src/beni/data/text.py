"""Plain text, cut into pieces of equal length: language modelling without pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from beni.data.sample import Message, Sample, Source
from beni.errors import DataError


class Text(Source):
    """Pieces of a text file; with ``template=plain`` every token of a piece is supervised.

    Args:
        seed: of the run; the text and its split do not depend on it.
        path: the file; null is refused.
        piece: characters of one sample.
        heldout: share of the text, at its end, held out for the loss, in (0, 1).

    Raises:
        DataError: when the file is missing, is not UTF-8 or holds fewer than two pieces.
    """

    task = "loss"

    def __init__(self, seed: int, *, path: str | None, piece: int, heldout: float) -> None:
        if path is None:
            raise DataError("data.path is null\n  fix: set data.path to a text file")
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"data.path={path} does not exist\n  fix: set data.path to a text file")
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"data.path={path} is not UTF-8 text: {error}\n  fix: iconv -t UTF-8") from error
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
        held = max(1, round(heldout * len(pieces)))
        self._pieces, self._held = pieces[:-held], pieces[-held:]
        if not self._pieces:
            raise DataError(
                f"{path} has {len(text)} characters, too few for pieces of data.piece={piece}\n"
                f"  fix: set data.piece={max(1, len(text) // 10)}, or data.path to a longer text"
            )
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._pieces)

    def train(self, index: int, epoch: int) -> Sample:
        return _sample(f"train-{index}", self._pieces[index])

    def heldout(self) -> Sequence[Sample]:
        return [_sample(f"heldout-{i}", piece) for i, piece in enumerate(self._held)]

    def fingerprint(self) -> str:
        return self._digest


def _sample(name: str, text: str) -> Sample:
    return Sample(name, (Message("assistant", (text,)),), cluster=name)
