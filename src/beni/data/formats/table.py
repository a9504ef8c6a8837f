"""Sources made of rows: what all formats share. A format says what a row means (``read``), and nothing else."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beni.data.formats.groups import drawn_rows, groups_of, whole_groups
from beni.data.images import Augment, Image
from beni.data.records.base import Row, Rows
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.nn.streams import numpy_stream


class Table(SingleSource):
    """Samples that are rows; subclasses are final.

    Args:
        seed: of the run; the split into training and held-out rows does not depend on it.
        rows: the records.
        heldout: records held out, the same for every seed: at most so many, as all records of an image are held out or
            none is. Where images have too many records for that, or cannot be told apart, records are held out one by
            one, and ``notices`` says so.
        augment: see ``beni.data.images.Augment``.
        images: folder that relative paths of pictures are meant to; None for that of the process.
        settings: everything else that changes what a row becomes, for the fingerprint.
        varies: whether ``read`` draws something anew in each epoch.

    Raises:
        DataError: when nothing is left to train on, or ``heldout`` is negative.
    """

    def __init__(
        self,
        seed: int,
        rows: Rows,
        heldout: int,
        augment: Mapping[str, Any],
        images: str | Path | None,
        settings: Mapping[str, Any],
        varies: bool = False,
    ) -> None:
        self.seed, self.rows, self.varies = seed, rows, varies
        self.augment = Augment.from_config(augment)
        self.root = Path(images).expanduser() if images else Path()
        self._settings = dict(settings)
        self.notices: tuple[str, ...] = ()
        held = np.zeros(len(rows), dtype=bool)
        held[self._held_out(heldout)] = True
        self._heldout, self._train = np.flatnonzero(held), np.flatnonzero(~held)

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

    def _held_out(self, wanted: int) -> np.ndarray:
        """The rows that are held out: whole images, so that none of theirs is trained on."""
        count, name = len(self.rows), self.rows.where(0).rpartition(", ")[0] or self.rows.where(0)
        if wanted < 0:
            raise DataError(f"data.heldout={wanted}, expected a number of records\n  fix: set data.heldout=1 or more")
        if count <= wanted:
            fix = f"set data.heldout={max(1, count // 10)}" if count > 1 else "set data.path to more than one record"
            raise DataError(f"{name} has {count} records, data.heldout={wanted} leaves none to train on\n  fix: {fix}")
        if wanted == 0:
            return np.empty(0, dtype=np.int64)
        groups = groups_of(self.rows, self._image_keys, f"{type(self).__name__} {sorted(self._settings.items())}")
        if groups is None:
            self.notices = (f"{name}: records are held out one by one; whether they share images is not known in tars",)
            return drawn_rows(count)[:wanted]
        rows = whole_groups(groups, wanted)
        if rows is None:
            sizes = np.bincount(groups)
            shared = (sizes[groups] > 1).mean()
            self.notices = (
                f"{name}: held-out records share images with training records: {shared:.0%} of {count} records share "
                f"their image, one with {int(sizes.max())} records, too many for data.heldout={wanted} to be whole "
                "images",
            )
            return drawn_rows(count)[:wanted]
        if len(rows) < wanted:
            self.notices = (f"{name}: {len(rows)} records are held out, not {wanted}: whole images, none of them cut",)
        return rows

    def _image_keys(self, row: Row, number: int) -> set[str]:
        """What identifies the images of a row, and what its format says is not independent."""
        sample = self.read(row, self.rows.where(number), None)
        return {image.key for image in sample.images} | ({sample.cluster} if sample.cluster else set())

    def _sample(self, number: int, rng: np.random.Generator | None) -> Sample:
        row, where = self.rows[number], self.rows.where(number)
        sample = self.read(row, where, rng)
        own = row.get("id", row.get("__key__", ""))
        cluster = sample.cluster or (sample.images[0].key if sample.images else "")
        # ids of sets repeat: several conversations about one picture carry the picture's number
        name = f"{number}-{own}" if own != "" else str(number)
        return replace(sample, id=name, where=where, cluster=cluster, augment=self.augment)


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


def exchange(content: Sequence[str | Image], answer: str) -> tuple[Message, Message]:
    """A question and its answer."""
    return Message("user", tuple(content)), Message("assistant", (answer,))
