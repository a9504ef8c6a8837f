"""The ledger: what a run has been shown, by source. Sums over micro-batches, steps and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields


@dataclass(frozen=True)
class Counts:
    """What training has seen of one source.

    Attributes:
        samples: seen, a sample at several scales once each.
        tokens: positions of the llm, visual ones included.
        labels: supervised tokens.
        images: pictures.
        padding: positions that hold nothing.
        truncated: tokens cut off by ``template.overlong=truncate``.
        bad: pictures that could not be had.
        bad_records: records that could not be used.
    """

    samples: int = 0
    tokens: int = 0
    labels: int = 0
    images: int = 0
    padding: int = 0
    truncated: int = 0
    bad: int = 0
    bad_records: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


Rows = Mapping[str, Counts]
"""Counts by the name of the source; "" where the data is one source."""


@dataclass
class Ledger:
    """Counts of this rank since training began; only rank 0 knows what an interrupted run had counted before."""

    sources: Sequence[str]
    rows: dict[str, Counts] = field(default_factory=dict)

    def add(self, many: Iterable[Rows]) -> None:
        """The counts of micro-batches."""
        for rows in many:
            for name, counts in rows.items():
                self.rows[name] = self.rows.get(name, Counts()) + counts

    def totals(self, sum_all: Callable[[list[int]], list[int]]) -> dict[str, Counts]:
        """Over all ranks; ``sum_all`` adds up lists of equal length element by element."""
        flat = [value for name in self.sources for value in astuple(self.rows.get(name, Counts()))]
        summed, width = sum_all(flat), len(fields(Counts))
        return {name: Counts(*summed[i * width : (i + 1) * width]) for i, name in enumerate(self.sources)}

    @staticmethod
    def metrics(totals: Rows) -> dict[str, float]:
        """Flat keys below ``data/``; by source where there are several."""
        return {
            "/".join(part for part in ("data", name, key.name) if part): float(getattr(counts, key.name))
            for name, counts in totals.items()
            for key in fields(counts)
        }
