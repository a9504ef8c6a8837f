"""Sources made of rows: what all formats share. A format says what a row means (``read``), and nothing else."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beni.data.formats.groups import drawn_rows, groups_of, whole_groups
from beni.data.formats.unread import Fields, Unread, notice_of
from beni.data.images import Augment, Image
from beni.data.records.base import Joined, Row, Rows
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.nn.streams import numpy_stream

LOOKED_AT = 64
"""Records whose fields are looked at before anything is trained; all others when they are read."""


class Table(SingleSource):
    """Samples that are rows; subclasses are final.

    Args:
        seed: of the run; the split into training and held-out rows does not depend on it.
        rows: the records.
        held: the records to hold out, where they are in a file of their own; None holds out some of ``rows``.
        heldout: records held out, the same for every seed: at most so many, as all records of an image are held out or
            none is. Where images have too many records for that, or cannot be told apart, records are held out one by
            one, and ``notices`` says so. Of a file of their own all are, or so many that are drawn.
        augment: see ``beni.data.images.Augment``.
        images: folder that relative paths of pictures are meant to; None for that of the process.
        settings: everything else that changes what a row becomes, for the fingerprint.
        varies: whether ``read`` draws something anew in each epoch.
        fields: what the format knows of a record's fields.
        ignore: fields that are left unread.

    Attributes:
        unread: for the fields of what is within a record.

    Raises:
        DataError: when nothing is left to train on, or one of the first records has a field that would be lost.
    """

    def __init__(
        self,
        seed: int,
        rows: Rows,
        held: Rows | None,
        heldout: int,
        augment: Mapping[str, Any],
        images: str | Path | None,
        settings: Mapping[str, Any],
        varies: bool = False,
        *,
        fields: Fields,
        ignore: Sequence[str],
    ) -> None:
        self.seed, self.varies = seed, varies
        self.rows = rows if held is None else Joined([rows, held])
        self.fields, self.unread = fields, Unread(ignore)
        self.augment = Augment(**augment)
        self.root = Path(images).expanduser() if images else Path()
        self.located = f"{self.root.absolute()} {rows.where(0)}"
        self._settings = dict(settings)
        self.notices: tuple[str, ...] = tuple(self.rows.notices)
        chosen = self._held_out(heldout) if held is None else self._of_their_own(len(rows), len(held), heldout)
        self._heldout, self._train = np.sort(chosen), np.setdiff1d(np.arange(len(rows)), chosen)
        self.notices += tuple(self._look())

    def __len__(self) -> int:
        return len(self._train)

    def train(self, index: int, epoch: int) -> Sample:
        return self._sample(int(self._train[index]), numpy_stream(self.seed, "data.draw", epoch, index))

    def heldout(self) -> Sequence[Sample]:
        return _Heldout(self)

    def fingerprint(self) -> str:
        held = str(len(self._heldout))
        if not np.array_equal(self._heldout, np.sort(drawn_rows(len(self.rows))[: len(self._heldout)])):
            held += f" {hashlib.sha256(self._heldout.tobytes()).hexdigest()}"
        said = f"{type(self).__name__} {self.rows.fingerprint()} {held} {sorted(self._settings.items())}"
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

    def _look(self) -> list[str]:
        """What is to be said of the fields of the first records; their other faults are told when they are drawn."""
        counts: Counter[str] = Counter()
        looked = min(LOOKED_AT, len(self.rows))
        for number in range(looked):
            self.unread.seen.clear()
            try:
                self._sample(number, None)
            except DataError as error:
                if error is self.unread.fault:
                    raise
            finally:
                counts.update(self.unread.seen)
        return list(notice_of(counts, looked, len(self.rows), self.rows.title))

    def _of_their_own(self, train: int, held: int, wanted: int) -> np.ndarray:
        """The held-out rows behind ``train`` rows to train on: all of them, or so many that are drawn."""
        if wanted < 1:
            raise DataError(
                f"data.heldout={wanted} holds out none of the {held} records of data.heldout_path\n"
                f"  fix: set data.heldout={held}, or leave out data.heldout_path"
            )
        chosen = train + drawn_rows(held)[:wanted]
        if wanted < held:
            self.notices += (f"data.heldout={wanted} of the {held} records of data.heldout_path are held out",)
        groups = groups_of(self.rows, self._image_keys, f"{type(self).__name__} {sorted(self._settings.items())}")
        shared = np.isin(groups[chosen], groups[:train]).sum() if groups is not None else 0
        if shared:
            self.notices += (f"{shared} of {len(chosen)} held-out records share their image with training records",)
        return chosen

    def _held_out(self, wanted: int) -> np.ndarray:
        """The rows that are held out: whole images, so that none of theirs is trained on."""
        count, name = len(self.rows), self.rows.title
        if not 0 <= wanted < count:
            raise DataError(
                f"{name} has {count} record{'s' * (count != 1)}, data.heldout={wanted}; expected to hold out "
                "at least 1 and to leave at least 1 for training\n  fix: set "
                + (f"data.heldout={max(1, count // 10)}" if count > 1 else "data.path to a file of more records")
            )
        if wanted == 0:
            return np.empty(0, dtype=np.int64)
        groups = groups_of(self.rows, self._image_keys, f"{type(self).__name__} {sorted(self._settings.items())}")
        if groups is None:
            self.notices += (
                f"{name}: held out by record, not by image: in tar files it is not known which records share an image",
            )
            return drawn_rows(count)[:wanted]
        rows = whole_groups(groups, wanted)
        if rows is None:
            sizes = np.bincount(groups)
            shared = (sizes[groups] > 1).mean()
            self.notices += (
                f"{name}: held-out records share images with training records: {shared:.0%} of {count} records share "
                f"their image (up to {int(sizes.max())} per image), too many to hold out whole images with "
                f"data.heldout={wanted}",
            )
            return drawn_rows(count)[:wanted]
        if len(rows) < wanted:
            self.notices += (
                f"{name}: {len(rows)} records are held out, not {wanted}: an image is held out with all its records",
            )
        return rows

    def _image_keys(self, row: Row, number: int) -> set[str]:
        """What identifies the images of a row, and what its format says is not independent."""
        sample = self.read(row, self.rows.where(number), None)
        return {image.key for image in sample.images} | ({sample.cluster} if sample.cluster else set())

    def _sample(self, number: int, rng: np.random.Generator | None) -> Sample:
        row, where = self.rows[number], self.rows.where(number)
        self.unread.check(row, self.fields, where)
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
