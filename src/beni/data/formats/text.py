"""Plain text, cut into pieces of equal length: language modelling without pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.request import urlopen

from beni.config.ranges import Above, AtLeast, Below, Example
from beni.data.metric import LossOnly
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.paths import cache_dir


class Text(SingleSource):
    """Pieces of a text file; with ``template=plain`` every token of a piece is supervised.

    Args:
        seed: of the run; the text and its split do not depend on it.
        path: the file; null takes that of ``url``. With ``sha256`` it is a copy of that text, and must be.
        url: where the text can be had; it is fetched once, into beni's cache folder.
        sha256: of the text; another one is refused.
        piece: characters of one sample.
        heldout: share of the text, at its end, held out for the loss, in (0, 1).

    Raises:
        DataError: when the file is missing, cannot be fetched, is not UTF-8 or holds fewer than two pieces.
    """

    metric = LossOnly()
    varies = False

    def __init__(
        self,
        seed: int,
        *,
        path: str | None,
        url: str | None,
        sha256: str | None,
        piece: Annotated[int, AtLeast(1), Example("1024")],
        heldout: Annotated[float, Above(0), Below(1), Example("0.1")],
    ) -> None:
        if path is None and (url is None or sha256 is None):
            raise DataError("data.path is null\n  fix: set data.path to a text file")
        given = path
        path = str(_fetched(url, sha256)) if path is None and url and sha256 else str(path)
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"data.path={path} does not exist\n  fix: set data.path to a text file")
        if given is not None:
            _require_same(self.path, url, sha256)
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # some editors begin a text with a byte order mark
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


def _require_same(path: Path, url: str | None, sha256: str | None) -> None:
    """Return when a file is the text that ``sha256`` is of, or nothing says which it should be.

    Raises:
        DataError: for another text, or a URL that would do nothing.
    """
    otherwise = "\n  fix: choose data=text for a text of your own, or set data.url=null data.sha256=null"
    if sha256 is None:
        if url is not None:
            raise DataError(f"data.url={url} does nothing beside data.path={path} without data.sha256{otherwise}")
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"data.path={path} has the sha256 {found}, expected data.sha256={sha256}{otherwise}")


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
