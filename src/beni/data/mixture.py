"""Several sources as one, in declared shares.

Each source is an endless stream of its own shuffled epochs; an epoch of the mixture takes the next so many samples of
each. So a small source repeats and a large one goes on where the last epoch stopped, nothing is drawn with replacement,
and which sample stands where follows from (seed, epoch, index) like everywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import Above, AtLeast, Example
from beni.data.order.schedule import epoch_order
from beni.data.sample import Sample
from beni.data.source import Part, Source
from beni.errors import DataError
from beni.nn.streams import derive


class Mixture(Source):
    """Samples of several sources.

    Args:
        seed: of the run.
        sources: name -> a whole data node with ``_partial_: true``, which leaves the building to this class; names are
            those of metrics and errors.
        weights: name -> weight; empty weighs each source with what it has.
        by: what weights are shares of: ``samples``, ``tokens`` (text tokens, counted by the index), or ``epochs``: the
            number of times that an epoch of the mixture takes a source, 0.5 or 3, say.
        temperature: weights are raised to 1 / temperature, so that above 1 small sources gain; not for ``epochs``.
        most_epochs: an epoch of the mixture takes no source more often than this; what is cut goes to the others. Null
            for no cap.
        size: samples of an epoch; null takes as many as all sources have, and with ``epochs`` what the weights make.
        score: sources whose held-out samples are scored; empty for all. They must be scored alike.

    Raises:
        DataError: for an unknown name, a weight below 0, sources scored differently, or caps that leave too little.
    """

    def __init__(
        self,
        seed: int,
        *,
        sources: dict[str, partial[Source]],
        weights: dict[str, float],
        by: Literal["samples", "tokens", "epochs"],
        temperature: Annotated[float, Above(0), Example("1.0")],
        most_epochs: Annotated[float, Above(0), Example("4.0")] | None,
        size: Annotated[int, AtLeast(1), Example("8192")] | None,
        score: list[str],
    ) -> None:
        if not sources:
            raise DataError("data.sources is empty, expected at least one\n  fix: choose another option of data")
        for key, names in (("weights", weights), ("score", score)):
            if unknown := [name for name in names if name not in sources]:
                raise DataError(
                    f"data.{key} names {unknown[0]}; data.sources has {', '.join(sources)}\n"
                    f"  fix: name one of those in data.{key}"
                )
        if weights and (missing := [name for name in sources if name not in weights]):
            raise DataError(
                f"data.weights lacks {missing[0]}\n  fix: set data.weights.{missing[0]}=1.0 (0.0 leaves it out)"
            )
        if bad := [f"data.weights.{name}={weight}" for name, weight in weights.items() if not 0 <= weight < np.inf]:
            raise DataError(
                f"{bad[0]}, expected a finite number of 0 or more\n  fix: set {bad[0].partition('=')[0]}=1.0"
            )
        if not temperature > 0:
            raise DataError(
                f"data.temperature={temperature}, expected a number above 0\n  fix: set data.temperature=1.0"
            )
        self.seed = seed
        self.sources: dict[str, Source] = {name: node(seed) for name, node in sources.items()}
        self.notices = tuple(f"{name}: {said}" for name, one in self.sources.items() for said in one.notices)
        self.weights, self.by, self.temperature = weights, by, temperature
        self.most_epochs, self.size = most_epochs, size
        self.scored = {name: self.sources[name] for name in score or self.sources}
        if unscored := [name for name, source in self.scored.items() if len(source.heldout()) == 0]:
            others = [name for name in self.scored if name not in unscored]
            raise DataError(
                f"data.sources.{unscored[0]} holds out no records to score\n"
                f"  fix: set data.sources.{unscored[0]}.heldout=100"
                + (f", or 'data.score=[{','.join(others)}]'" if others else "")
            )
        metrics = {source.metric for source in self.scored.values()}
        if len(metrics) > 1:
            raise DataError(
                "the held-out samples of data.sources are scored differently: "
                + ", ".join(f"{name} by {source.metric.name}" for name, source in self.scored.items())
                + f"\n  fix: set 'data.score=[{next(iter(self.sources))}]'"
            )
        self.metric, self.varies = next(iter(metrics)), True
        self._text: dict[str, float] | None = None
        self._counts: dict[str, int] | None = None
        if by != "tokens":
            self._counts = self._apportion()

    def measure(self, mean_tokens: Callable[[Source], float]) -> None:
        if self.by == "tokens":
            self._text = {name: mean_tokens(source) for name, source in self.sources.items()}
            self._counts = self._apportion()

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each source in an epoch.

        Raises:
            DataError: when shares are of tokens and nobody has measured them.
        """
        if self._counts is None:
            raise DataError("data.by=tokens: the sources have not been measured")
        return self._counts

    def __len__(self) -> int:
        return sum(self.counts.values())

    def train(self, index: int, epoch: int) -> Sample:
        name, place = self._place(index)
        source = self.sources[name]
        own_epoch, own_index = self._locate(name, epoch * self.counts[name] + place)
        return self._named(name, source, source.train(own_index, own_epoch))

    def parts(self, epoch: int) -> list[Part]:
        parts = []
        for name, count in self.counts.items():
            source = self.sources[name]
            positions = np.arange(epoch * count, (epoch + 1) * count)
            epochs, places = np.divmod(positions, len(source))
            indices = np.empty_like(places)
            for own in np.unique(epochs):
                chosen = epochs == own
                indices[chosen] = self._order(name, int(own))[places[chosen]]
            parts.append(Part(source, epochs, indices))
        return parts

    def heldout(self) -> Sequence[Sample]:
        return _Joined(
            [(name, source, source.heldout()) for name, source in self.scored.items()],
            self._named,
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.counts, list(self.scored))).encode())
        for name, source in self.sources.items():
            digest.update(f"{name} {source.fingerprint()}".encode())
        return digest.hexdigest()[:16]

    def _named(self, name: str, source: Source, sample: Sample) -> Sample:
        named = replace(sample, id=f"{name}/{sample.id}", source=name)
        return replace(named, cluster=f"{name}/{sample.cluster}") if sample.cluster else named

    def _place(self, index: int) -> tuple[str, int]:
        """The source of a sample of the mixture, and its place among those of its source."""
        for name, count in self.counts.items():
            if index < count:
                return name, index
            index -= count
        raise IndexError(index)

    def _locate(self, name: str, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.sources[name]))
        return epoch, int(self._order(name, epoch)[place])

    def _order(self, name: str, epoch: int) -> np.ndarray:
        return epoch_order(derive(self.seed, "data.mixture", name), epoch, len(self.sources[name]))

    def _apportion(self) -> dict[str, int]:
        """Samples of each source in an epoch: shares of the whole, whole numbers by largest remainder."""
        sizes = {name: len(source) for name, source in self.sources.items()}
        most = {name: np.inf if self.most_epochs is None else self.most_epochs * size for name, size in sizes.items()}
        if self.by == "epochs":
            scale = {name: self.weights.get(name, 1.0) for name in sizes}
            counts = {name: min(scale[name] * sizes[name], most[name]) for name in sizes}
            factor = 1.0 if self.size is None else self.size / sum(counts.values())
            return _whole({name: count * factor for name, count in counts.items()})
        length = self._text or dict.fromkeys(sizes, 1.0)
        weight = {name: self.weights.get(name, sizes[name] * length[name]) for name in sizes}
        # a share of tokens is a share of samples over how long they are
        share = {name: weight[name] ** (1 / self.temperature) / length[name] if weight[name] else 0.0 for name in sizes}
        total = float(self.size if self.size is not None else sum(sizes.values()))
        if not any(share.values()):
            raise DataError("data.weights are all 0\n  fix: set one above 0")
        possible = sum(most[name] for name in sizes if share[name])
        if possible < total and self.size is not None:
            raise DataError(
                f"data.most_epochs={self.most_epochs} allows {possible:.0f} samples an epoch, data.size={self.size}\n"
                "  fix: set data.size=null or raise data.most_epochs"
            )
        return _whole(_capped(share, most, min(total, possible)))


class _Joined(Sequence[Sample]):
    """Held-out samples of all sources in turn, so that the first few are of every kind; decoded when asked for."""

    def __init__(
        self,
        many: Sequence[tuple[str, Source, Sequence[Sample]]],
        named: Callable[[str, Source, Sample], Sample],
    ) -> None:
        self.named = named
        ranked = [
            (i / max(1, len(samples)), which, i)
            for which, (*_, samples) in enumerate(many)
            for i in range(len(samples))
        ]
        self.places = [(many[which], i) for _, which, i in sorted(ranked)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        (name, source, samples), i = self.places[at]
        return self.named(name, source, samples[i])


def _capped(share: Mapping[str, float], most: Mapping[str, float], total: float) -> dict[str, float]:
    """``total`` in proportion to ``share``, no part above its cap; what a cap cuts off goes to the others."""
    counts: dict[str, float] = {}
    left, free = total, dict(share)
    while free:
        unit = left / sum(free.values()) if sum(free.values()) else 0.0
        over = [name for name in free if free[name] * unit > most[name]]
        for name in over or list(free):
            counts[name] = most[name] if over else free[name] * unit
            left -= counts[name]
            del free[name]
    return {name: counts[name] for name in share}


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of the same sum, by largest remainder; a share above 0 gets at least one sample."""
    floors = {name: max(int(count), 1 if count > 0 else 0) for name, count in counts.items()}
    missing = round(sum(counts.values())) - sum(floors.values())
    for name in sorted(counts, key=lambda n: (-(counts[n] - int(counts[n])), n))[: max(0, missing)]:
        floors[name] += 1
    return floors
