"""Which held-out samples are evaluated, and which of them are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from beni.data.fetch.fetcher import Fetcher
from beni.data.images import BadImage
from beni.data.sample import Bind, Sample
from beni.data.source import Source
from beni.distributed.collectives import gather_objects
from beni.nn.streams import numpy_stream

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples modulo 1 lie evenly however many there are, whatever repeats in a file."""


class Chosen(Sequence[Sample]):
    """Some of the samples, read when they are asked for, with pictures that can be opened."""

    def __init__(self, samples: Sequence[Sample], places: Sequence[int], bind: Bind) -> None:
        self.samples, self.places, self.bind = samples, places, bind

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Chosen(self.samples, self.places[at], self.bind)
        return self.bind(self.samples[self.places[at]])


class Everything(Sequence[Sample]):
    """All samples of a source, those that it holds out first, as it draws the others in the first epoch."""

    def __init__(self, source: Source) -> None:
        self.source, self.held = source, source.heldout()

    def __len__(self) -> int:
        return len(self.held) + len(self.source)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        return self.held[place] if place < len(self.held) else self.source.train(place - len(self.held), 0)


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples that a run scores.

    Attributes:
        places: of those that can be read, ascending.
        bad: place of the others -> why they cannot be.
    """

    places: Sequence[int]
    bad: Mapping[int, str]

    def faults(self) -> list[dict[str, Any]]:
        """Lines of data_errors.jsonl, but for the step."""
        return [
            {"sample": f"held-out sample {place}", "reason": reason, "action": "left out"}
            for place, reason in self.bad.items()
        ]


def evenly(count: int, of: int) -> list[int]:
    """``count`` of the places 0 to ``of`` - 1 (or all), ascending: spread over them, the same in every run.

    The places of a smaller count are among those of a larger one, so runs that score different numbers of samples share
    those of the smaller number.
    """
    return sorted(_scattered(of)[:count])


def _scattered(of: int) -> list[int]:
    """The places 0 to ``of`` - 1 in an order of which any beginning lies evenly over them."""
    start = numpy_stream(0, "eval.examples").random()
    return np.argsort((start + np.arange(of) * GOLDEN) % 1.0, kind="stable").tolist()


def reachable(
    samples: Sequence[Sample],
    places: Sequence[int],
    fetcher: Fetcher,
    ahead: int,
    between: Callable[[], None],
    tell: Callable[[str], None],
) -> Chosen:
    """The samples at ``places``, without those that any rank cannot fetch a picture of.

    Args:
        ahead: samples whose pictures are asked for while those of others are waited for.
        between: called now and then by all ranks alike; may raise to end the evaluation.
        tell: told how many are left out, and why the first is.
    """
    urls = [[image.url for image in samples[place].images if image.url is not None] for place in places]
    if not any(urls):
        return Chosen(samples, places, fetcher.bind)
    bad = []
    for i, mine in enumerate(urls):
        if i % ahead == 0:
            between()
            fetcher.want([url for some in urls[i : i + 2 * ahead] for url in some])
        try:
            for url in mine:
                fetcher.get(url)
        except BadImage as error:
            bad.append((i, str(error)))
    left_out = dict(gather_objects(bad))
    if left_out:
        tell(f"{len(left_out)} held-out samples are left out: {next(iter(left_out.values()))}")
    return Chosen(samples, [place for i, place in enumerate(places) if i not in left_out], fetcher.bind)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples with a picture, evenly over the kinds of question and over the samples of a kind."""
    by_kind: dict[str, list[int]] = {}
    for i, sample in enumerate(samples if count else ()):
        if sample.images:
            by_kind.setdefault(sample.kind, []).append(i)
    orders = [[group[place] for place in _scattered(len(group))] for group in by_kind.values()]
    chosen = [i for turn in zip_longest(*orders) for i in turn if i is not None]
    return [samples[i] for i in chosen[:count]]
