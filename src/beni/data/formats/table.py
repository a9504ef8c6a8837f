"""Sources made of rows: what all formats share. A format says what a row means (``read``), and nothing else."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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
        heldout: records held out, the same for every seed.
        augment: see ``beni.data.images.Augment``.
        images: folder that relative paths of pictures are meant to; None for that of the process.
        settings: everything else that changes what a row becomes, for the fingerprint.
        varies: whether ``read`` draws something anew in each epoch.

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
        varies: bool = False,
    ) -> None:
        self.seed, self.rows, self.varies = seed, rows, varies
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
