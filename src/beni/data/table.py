"""Sources made of rows: what all formats share. A format says what a row means (``read``), and nothing else."""

from __future__ import annotations

import base64
import binascii
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beni.config.suggest import closest
from beni.data.images import Augment, Image
from beni.data.rows import Row, Rows
from beni.data.sample import Message, Role, Sample, Source
from beni.data.tokens import IMAGE
from beni.errors import DataError
from beni.nn.streams import numpy_stream

REMOTE = ("http://", "https://", "hf://")


class Table(Source):
    """Samples that are rows; subclasses are final.

    Args:
        seed: of the run; the split into training and held-out rows does not depend on it.
        rows: the records.
        heldout: records held out, the same for every seed.
        augment: see ``beni.data.images.Augment``.
        images: folder that relative paths of pictures are meant to; None for that of the process.
        settings: everything else that changes what a row becomes, for the fingerprint.

    Raises:
        DataError: when nothing is left to train on.
    """

    def __init__(
        self,
        seed: int,
        rows: Rows,
        heldout: int,
        augment: Mapping[str, Any],
        images: str | Path | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.seed, self.rows = seed, rows
        self.augment = Augment.from_config(augment)
        self.root = Path(images).expanduser() if images else Path()
        self._settings = dict(settings)
        count = len(rows)
        if count <= heldout:
            raise DataError(
                f"{rows.where(0).rpartition(', ')[0] or rows.where(0)} has {count} records, "
                f"data.heldout={heldout} leaves none to train on\n  fix: set data.heldout={max(0, count // 10)}"
            )
        order = numpy_stream(0, "data.heldout").permutation(count)
        self._heldout, self._train = np.sort(order[:heldout]), np.sort(order[heldout:])

    def __len__(self) -> int:
        return len(self._train)

    def train(self, index: int, epoch: int) -> Sample:
        return self._sample(int(self._train[index]), numpy_stream(self.seed, "data.draw", epoch, index))

    def heldout(self) -> Sequence[Sample]:
        return _Heldout(self)

    def fingerprint(self) -> str:
        said = f"{type(self).__name__} {self.rows.fingerprint()} {len(self._heldout)} {sorted(self._settings.items())}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @abstractmethod
    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        """A row as a sample; its id, place and cluster are filled in where they are empty.

        Args:
            where: the row's place, for errors.
            rng: for what is drawn anew in each epoch; None for a held-out row, which takes the first of everything.

        Raises:
            DataError: naming place, what is wrong and the fix.
        """

    def _sample(self, number: int, rng: np.random.Generator | None) -> Sample:
        row, where = self.rows[number], self.rows.where(number)
        sample = self.read(row, where, rng)
        own = row.get("id", row.get("__key__", ""))
        cluster = sample.cluster or (sample.images[0].key if sample.images else "")
        # ids of sets repeat: several conversations about one picture carry the picture's number
        return replace(sample, id=f"{number}-{own}" if own != "" else str(number), where=where, cluster=cluster)


class _Heldout(Sequence[Sample]):
    """Read when asked for."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table._heldout)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return self.table._sample(int(self.table._heldout[at]), None)


def column(row: Row, name: str, where: str) -> Any:
    """A value by its column; ``a.b`` is the field ``b`` of ``a``, and ``jpg;png`` whichever there is.

    Raises:
        DataError: when there is none; says which columns there are, and the one that was probably meant.
    """
    for alternative in name.split(";"):
        value: Any = row
        for part in [alternative] if alternative in row else alternative.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return value
    near = closest(name, row)
    raise DataError(
        f"{where}: no column {name!r}; there are {', '.join(map(repr, sorted(row)))}\n"
        f"  fix: set the column in data.columns{f', perhaps to {near}' if near else ''}"
    )


_ABSENT = object()


def text_of(value: Any, name: str, where: str) -> str:
    """A text.

    Raises:
        DataError: when it is none, or empty.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {_short(value)}, expected a text")
    if not value.strip():
        raise DataError(f"{where}: {name!r} is empty, expected a text")
    return value


def pictures_of(value: Any, root: Path, name: str, where: str) -> list[Image]:
    """What a column holds as pictures: none, one or a list of paths, URLs, bytes or ``{"bytes", "path"}``.

    Raises:
        DataError: when it is something else.
    """
    if value is None or value == "":
        return []
    many = value if isinstance(value, list | tuple) else [value]
    return [picture_of(one, root, name, where, number) for number, one in enumerate(many)]


def picture_of(value: Any, root: Path, name: str, where: str, number: int = 0) -> Image:
    """One picture; see ``pictures_of``."""
    key = f"{where}, {name} {number}"
    if isinstance(value, bytes):
        return Image.from_bytes(value, key)
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return Image.from_bytes(value["bytes"], str(value.get("path") or key))
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {name!r} is {_short(value)}, expected a path or a list of paths")
    if value.startswith(REMOTE):
        return Image.from_url(value)
    if value.startswith("data:"):
        try:
            return Image.from_bytes(base64.b64decode(value.partition(",")[2], validate=True), key)
        except binascii.Error as error:
            raise DataError(f"{where}: {name!r} is no valid data URL: {error}") from error
    return Image.from_path(root / value)


def interleaved(text: str, images: Iterator[Image], where: str) -> tuple[str | Image, ...]:
    """A text with ``<image>`` in it, the next pictures in their places.

    Raises:
        DataError: when there are too few.
    """
    content: list[str | Image] = []
    for i, piece in enumerate(text.split(IMAGE)):
        if i > 0:
            image = next(images, None)
            if image is None:
                raise DataError(
                    f"{where}: more {IMAGE} in the text than images\n"
                    f"  fix: add the missing pictures to the record, or remove {IMAGE} from its text"
                )
            content.append(image)
        if piece:
            content.append(piece)
    return tuple(content)


def require_used(images: Iterator[Image], count: int, where: str) -> None:
    """Return when every picture has found its place.

    Raises:
        DataError: otherwise.
    """
    if next(images, None) is not None:
        raise DataError(
            f"{where}: {count} images but fewer {IMAGE} in the text\n"
            f"  fix: put {IMAGE} where each picture belongs, or remove the picture from the record"
        )


def role_of(value: Any, roles: Mapping[str, Role], where: str) -> Role:
    """A role by the word that the format has for it.

    Raises:
        DataError: for another word.
    """
    role = roles.get(str(value))
    if role is None:
        raise DataError(
            f"{where}: unknown role {value!r}, expected one of {', '.join(roles)}\n"
            "  fix: rename the role in the record, or leave the record out"
        )
    return role


def exchange(content: Sequence[str | Image], answer: str) -> tuple[Message, Message]:
    """A question and its answer."""
    return Message("user", tuple(content)), Message("assistant", (answer,))


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
