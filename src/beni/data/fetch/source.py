"""A source whose pictures come through a fetcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from beni.data.fetch.fetcher import Fetcher
from beni.data.images import Augment, Image
from beni.data.sample import Part, Sample, Source


class Fetched(Source):
    """The same samples, their pictures bound to a fetcher; see ``Source`` for everything else.

    Args:
        inner: the source.
        fetcher: of this run.
    """

    def __init__(self, inner: Source, fetcher: Fetcher) -> None:
        self.inner, self.fetcher = inner, fetcher
        self.task, self.augment, self.varies, self.names = inner.task, inner.augment, inner.varies, inner.names
        self._wrapped: dict[int, Fetched] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Wrappers are kept by the identity of what they wrap, which no copy shares."""
        return self.__dict__ | {"_wrapped": {}}

    def __len__(self) -> int:
        return len(self.inner)

    def train(self, index: int, epoch: int) -> Sample:
        return self._bound(self.inner.train(index, epoch))

    def parts(self, epoch: int) -> list[Part]:
        return [Part(self._wrap(part.source), part.epochs, part.indices) for part in self.inner.parts(epoch)]

    def siblings(self, index: int, epoch: int) -> range:
        return self.inner.siblings(index, epoch)

    def measure(self, mean_tokens: Callable[[Source], float]) -> None:
        self.inner.measure(mean_tokens)

    def shares(self) -> dict[str, float]:
        return self.inner.shares()

    def augment_of(self, index: int) -> Augment:
        return self.inner.augment_of(index)

    def heldout(self) -> Sequence[Sample]:
        return _Bound(self, self.inner.heldout())

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def _wrap(self, source: Source) -> Source:
        if source is self.inner:
            return self
        return self._wrapped.setdefault(id(source), Fetched(source, self.fetcher))

    def _bound(self, sample: Sample) -> Sample:
        if all(image.url is None for image in sample.images):
            return sample
        messages = tuple(
            replace(
                message,
                content=tuple(self.fetcher.bind(part) if isinstance(part, Image) else part for part in message.content),
            )
            for message in sample.messages
        )
        return replace(sample, messages=messages)


class _Bound(Sequence[Sample]):
    """Held-out samples, bound when they are asked for."""

    def __init__(self, source: Fetched, samples: Sequence[Sample]) -> None:
        self.source, self.samples = source, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self.source._bound(sample) for sample in self.samples[at]]
        return self.source._bound(self.samples[at])
