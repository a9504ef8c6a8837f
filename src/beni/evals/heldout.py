"""Which held-out samples are evaluated, and which of them are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from beni.data.fetch.fetcher import Fetcher
from beni.data.images import BadImage
from beni.data.sample import Bind, Sample
from beni.distributed.collectives import gather_objects


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


def reachable(
    samples: Sequence[Sample],
    count: int,
    fetcher: Fetcher,
    ahead: int,
    between: Callable[[], None],
    tell: Callable[[str], None],
) -> Chosen:
    """The first ``count`` samples, without those that any rank cannot fetch a picture of.

    Args:
        ahead: samples whose pictures are asked for while those of others are waited for.
        between: called now and then by all ranks alike; may raise to end the evaluation.
        tell: told how many are left out, and why the first is.
    """
    places = range(min(count, len(samples)))
    urls = [[image.url for image in samples[i].images if image.url is not None] for i in places]
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
    return Chosen(samples, [i for i in places if i not in left_out], fetcher.bind)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples with a picture, evenly over the kinds of question."""
    by_kind: dict[str, list[int]] = {}
    for i, sample in enumerate(samples if count else ()):
        if sample.images:
            by_kind.setdefault(sample.kind, []).append(i)
    chosen: list[int] = []
    while len(chosen) < count and any(by_kind.values()):
        chosen += [group.pop(0) for group in by_kind.values() if group]
    return [samples[i] for i in chosen[:count]]
