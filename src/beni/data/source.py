"""Where samples come from: one source, or several as one (``beni.data.mixture``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from beni.data.metric import Metric
from beni.data.sample import Sample


class Part(NamedTuple):
    """Consecutive samples of an epoch that one source gives: sample ``i`` is its ``train(indices[i], epochs[i])``."""

    source: Source
    epochs: np.ndarray
    indices: np.ndarray


class Source(ABC):
    """What a run is trained and scored on. Sample ``index`` of an epoch is a pure function, so any process can draw any
    of them. Derive from ``SingleSource``, unless it is made of others.

    Attributes:
        metric: how held-out samples are scored.
        varies: whether a sample's text or pictures differ between epochs, augmentation aside.
        notices: what a person should know of the data and would not see: fields and files that are not read, held-out
            records that share images with others.
        located: where its images lie: sizes of those in one place say nothing of those in another.
    """

    metric: Metric
    varies: bool
    notices: tuple[str, ...] = ()
    located: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Training samples of one epoch."""

    @abstractmethod
    def train(self, index: int, epoch: int) -> Sample:
        """Training sample ``index`` in [0, len)."""

    @abstractmethod
    def heldout(self) -> Sequence[Sample]:
        """Held-out samples, the same for every seed of a study; their pictures may still be undecoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the content changes."""

    @property
    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Name of each source that it is made of, as ``Sample.source`` says it -> its samples in an epoch, where they
        stand together in this order.
        """

    @abstractmethod
    def parts(self, epoch: int) -> list[Part]:
        """Where the samples 0 ... len - 1 of an epoch come from, one part for each of ``counts``."""

    @abstractmethod
    def measure(self, mean_tokens: Callable[[Source], float]) -> None:
        """Told how long the samples of a source are, before anything else is asked: a mixture may have shares of
        tokens. ``mean_tokens`` builds an index, so only who needs it calls it.
        """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources it is made of; one empty name where it is one source."""
        return tuple(self.counts)

    def shares(self) -> dict[str, float]:
        """Share of an epoch's samples that each source gives; empty where it is one source."""
        return {name: count / len(self) for name, count in self.counts.items() if name}

    def siblings(self, index: int) -> range:
        """Which samples of an epoch come from the same source as ``index``: any of them may stand in for it."""
        ends = list(accumulate(self.counts.values()))
        place = bisect_right(ends, index)
        return range(ends[place - 1] if place else 0, ends[place])

    def name_of(self, index: int) -> str:
        """Which of ``names`` gives sample ``index`` of an epoch."""
        return self.names[bisect_right(list(accumulate(self.counts.values())), index)]


class SingleSource(Source):
    """A source that is not made of others. Subclasses are final, or abstract like ``Table``."""

    @property
    def counts(self) -> Mapping[str, int]:
        return {"": len(self)}

    def parts(self, epoch: int) -> list[Part]:
        return [Part(self, np.full(len(self), epoch), np.arange(len(self)))]

    def measure(self, mean_tokens: Callable[[Source], float]) -> None:
        """Needs to know nothing."""
