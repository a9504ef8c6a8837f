"""What the log lines say about speed: rates and utilisation since the last line, and where the time of the run went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from beni.distributed.collectives import sums, world_size
from beni.measure.goodput import Goodput, fractions
from beni.measure.memory import usage
from beni.measure.peak import Peak
from beni.model.costing.counts import Costs
from beni.model.costing.flop_count import FlopCount
from beni.types import Batch
from beni.vision.feature_bank import FeatureBank


@dataclass(frozen=True)
class Meter:
    """What steps are billed and compared with.

    Attributes:
        costs: of micro-batches; a recount is due when something else trains.
        peak: of this rank's device; every rank has the same.
        recomputes: False where what activation checkpointing computes again is not known, and so no HFU.
    """

    costs: Costs
    peak: Peak
    recomputes: bool = True


class ThroughputWindow:
    """From one log line to the next. Every rank counts its own; ``line`` sums over them."""

    def __init__(self, device: torch.device, goodput: Goodput, bank: FeatureBank | None, meter: Meter | None) -> None:
        self.device, self.goodput, self.bank, self.meter = device, goodput, bank, meter
        self.begin()

    def begin(self) -> None:
        """A new window."""
        self.start = time.perf_counter()
        self.waited = self.goodput.seconds["data"]
        self.samples = self.tokens = self.steps = 0
        self.flop_count = FlopCount()
        self.looked_up = self._lookups()

    def step_done(self, batches: Sequence[Batch], lengths: Sequence[Tensor | None] = ()) -> None:
        """A step has been taken on these micro-batches of this rank.

        Args:
            lengths: real positions of each sample of each micro-batch; None, or none at all, where nothing was dropped.
        """
        self.steps += 1
        self.samples += sum(len(batch.ids) for batch in batches)
        for batch, own in zip_longest(batches, lengths):
            kept = None if own is None else own.tolist()
            self.tokens += batch.num_tokens if kept is None else sum(kept)
            if self.meter is not None:
                self.flop_count += self.meter.costs.flop_count(batch, kept)

    def line(self) -> dict[str, float]:
        """Rates of all ranks, FLOPs of a step, shares of wall time since the run began.

        Shares, the feature bank and memory are this rank's.
        """
        split = self.goodput.split()
        seconds = max(time.perf_counter() - self.start, 1e-9)
        hits, misses, encoded = (now - before for now, before in zip(self._lookups(), self.looked_up, strict=True))
        flop_count = self.flop_count
        if hits + misses:
            flop_count = flop_count.scaled("vision", encoded / (hits + misses))
        samples, tokens, *flops = map(int, sums([self.samples, self.tokens, *flop_count.values()], self.device))
        values = {
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "data_wait": (split["data"] - self.waited) / seconds,
        }
        if hits + misses:
            values["feature_bank_hits"] = hits / (hits + misses)
        if self.meter is not None:
            values |= _utilisation(FlopCount.of(flops), self.steps, seconds, self.meter)
        values["wall_s"] = sum(split.values())
        values |= {f"goodput/{part}": share for part, share in fractions(split).items()}
        return values | {f"memory/{name}": value for name, value in usage(self.device).items()}

    def _lookups(self) -> tuple[int, int, int]:
        return (0, 0, 0) if self.bank is None else (self.bank.hits, self.bank.misses, self.bank.encoded)


def _utilisation(flop_count: FlopCount, steps: int, seconds: float, meter: Meter) -> dict[str, float]:
    whole = seconds * meter.peak.rate * world_size()
    flops = {name: value for name, value in flop_count.components.items() if value}
    flops |= {
        "useful": flop_count.useful,
        "causal": flop_count.useful - flop_count.causal,
        "padding": flop_count.padding,
    }
    values = {"tflops_per_s": flop_count.useful / seconds / 1e12, "mfu": flop_count.useful / whole}
    values["mfu_causal"] = (flop_count.useful - flop_count.causal) / whole
    if meter.recomputes:
        flops["recomputed"] = flop_count.recomputed
        values["hfu"] = (flop_count.useful + flop_count.recomputed) / whole
    return values | {f"flops/{name}": value / max(steps, 1) for name, value in flops.items()}
