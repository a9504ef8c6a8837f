"""Plain text, cut into pieces of equal length: language modelling without pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from beni.data.metric import LossOnly
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.paths import cache_dir


class Text(SingleSource):
    """Pieces of a text file; with ``template=plain`` every token of a piece is supervised.

    Args:
        seed: of the run; the text and its split do not depend on it.
        path: the file; null takes that of ``url``.
        url: where the text can be had; it is fetched once, into beni's cache folder.
        sha256: of the text behind ``url``; another text is refused.
        piece: characters of one sample.
        heldout: share of the text, at its end, held out for the loss, in (0, 1).

    Raises:
        DataError: when the file is missing, cannot be fetched, is not UTF-8 or holds fewer than two pieces.
    """

    metric = LossOnly()
    varies = False

    def __init__(
        self, seed: int, *, path: str | None, url: str | None, sha256: str | None, piece: int, heldout: float
    ) -> None:
        if path is None and (url is None or sha256 is None):
            raise DataError("data.path is null\n  fix: set data.path to a text file")
        path = str(_fetched(url, sha256)) if path is None and url and sha256 else str(path)
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


def _fetched(url: str, sha256: str) -> Path:
    """The text behind ``url``, from the cache where it is there already.

    Raises:
        DataError: when it cannot be had, or is another text.
    """
    kept = cache_dir() / "texts" / f"{sha256}.txt"
    if kept.is_file():
        return kept
    otherwise = f"\n  fix: curl -O {url} elsewhere, and set data.path to the file"
    try:
        with urlopen(url, timeout=30) as answer:
            text = answer.read()
    except OSError as error:
        raise DataError(f"data.url={url} cannot be fetched: {error}{otherwise}") from error
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise DataError(f"data.url={url} has the sha256 {found}, expected data.sha256={sha256}{otherwise}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".{os.getpid()}-{kept.name}")
    partial.write_bytes(text)
    os.replace(partial, kept)
    return kept


def _sample(name: str, text: str) -> Sample:
    return Sample(name, (Message("assistant", (text,)),), cluster=name)
