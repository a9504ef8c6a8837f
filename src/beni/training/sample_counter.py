"""What a run has been shown: the ledger of samples and tokens, and the pictures that were bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from beni.data.batch.ledger import Counts, Ledger
from beni.data.order.index import FEW_BAD
from beni.distributed.collectives import gather_objects, sum_counts
from beni.errors import DataError
from beni.types import Batch


class DataLog(Protocol):
    """A log that is told what was shown."""

    def data(self, step: int, values: Mapping[str, float], faults: Sequence[Mapping[str, Any]]) -> None:
        """What the run has been shown until now, on log steps, and the bad pictures since the last one."""


class SampleCounter:
    """Counts micro-batches. Its sums are over all ranks, so all call them alike.

    Args:
        sources: names of the data's sources.
        before: totals by source of an interrupted run.
        main: whether this is rank 0, which alone takes them over.
        max_bad: share of all pictures that may be bad before the run ends.
        max_bad_records: the same of all records.
    """

    def __init__(
        self,
        sources: Sequence[str],
        before: Mapping[str, Mapping[str, int]],
        main: bool,
        max_bad: float,
        device: torch.device,
        max_bad_records: float = 0.0,
    ) -> None:
        counted = {name: Counts(**counts) for name, counts in before.items()} if main else {}
        self.ledger, self.device = Ledger(sources, counted), device
        self.max_bad, self.max_bad_records = max_bad, max_bad_records
        self.faults: list[dict[str, Any]] = []

    def add(self, batches: Sequence[Batch], step: int) -> None:
        """Counts the micro-batches of step ``step`` (from 1)."""
        self.ledger.add(batch.counts for batch in batches)
        self.faults += [{"step": step, **fault} for batch in batches for fault in batch.faults]

    def totals(self) -> dict[str, Counts]:
        """What all ranks have seen until now, by source."""
        return self.ledger.totals(partial(sum_counts, device=self.device))

    def report(self, step: int, log: DataLog) -> dict[str, Counts]:
        """Tells the log, and ends the run where too many pictures are bad: all ranks alike, by the sums over them.

        Returns:
            The totals.

        Raises:
            DataError: when more of the pictures or records are bad than may be.
        """
        totals = self.totals()
        new = gather_objects(self.faults) if sum_counts([len(self.faults)], self.device)[0] else []
        self.faults = []
        log.data(step, Ledger.metrics(totals), new)
        bad, records = (sum(getattr(counts, of) for counts in totals.values()) for of in ("bad", "bad_records"))
        pictures, samples = (sum(getattr(counts, of) for counts in totals.values()) for of in ("images", "samples"))
        last = new[-1]["reason"] if new else ""
        _require_few(bad, bad + pictures, "images", "images.max_bad", self.max_bad, last)
        _require_few(records, records + samples, "records", "records.max_bad", self.max_bad_records, last)
        return totals


def _require_few(bad: int, of: int, what: str, key: str, most: float, last: str) -> None:
    if bad > max(FEW_BAD, most * of):
        why = f", the last: {last}" if last else ""
        raise DataError(
            f"{bad} of {of} {what} are bad, {key}={most} allows fewer{why}\n"
            f"  fix: see data_errors.jsonl in the run folder; correct the data, or raise {key}"
        )
