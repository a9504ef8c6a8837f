"""What an llm, and a fusion's layers around its own, cost at any length, from dry runs at a few short ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

SHORT = 8
"""Positions of the shortest dry run of an llm."""

LONG = 300
"""Positions at which a rate is tried: more than the chunks of Mamba 2 (256), few for models with a loop over them."""

BLOCK = 64
"""Positions between two counts of an llm that has no rate."""


@dataclass(frozen=True)
class Rate:
    """What an llm costs: FLOPs of a call, of each position, each pair of positions, each row of the head."""

    call: float
    position: float
    pair: float
    row: float

    def of(self, lengths: Sequence[int], rows: int) -> int:
        """A call on sequences of these lengths that see nothing of each other."""
        return round(
            self.call
            + self.position * sum(lengths)
            + self.pair * sum(length**2 for length in lengths)
            + self.row * rows
        )

    def pairs(self, lengths: Sequence[int]) -> float:
        """What of that goes with pairs of positions."""
        return self.pair * sum(length**2 for length in lengths)

    @staticmethod
    def fit(count: Callable[[int, int], int]) -> Rate:
        """From ``count(length, rows)`` of one short sequence, which is of this form."""
        one, two, three = (count(SHORT * times, 1) for times in (1, 2, 3))
        row = (count(SHORT, 3) - one) / 2
        pair = (three - 2 * two + one) / (2 * SHORT**2)
        position = (two - one) / SHORT - 3 * SHORT * pair
        return Rate(one - position * SHORT - pair * SHORT**2 - row, position, pair, row)


@dataclass(frozen=True)
class Around:
    """What a fusion's own layers cost on a sample: a rate for each of two numbers of visual tokens, and in proportion
    for any other.
    """

    few: Rate
    many: Rate
    tokens: tuple[int, int]

    def of(self, samples: Sequence[tuple[int, int]]) -> int:
        """Samples of (positions, visual tokens)."""
        few, many = self.tokens
        shares = [(tokens - few) / (many - few) for _, tokens in samples]
        costs = [(self.few.of([length], 0), self.many.of([length], 0)) for length, _ in samples]
        return round(sum(a + (b - a) * share for (a, b), share in zip(costs, shares, strict=True)))

    @staticmethod
    def fit(count: Callable[[int, int], int], tokens: int) -> Around:
        """From ``count(length, tokens)`` of one short sample, which is of this form."""
        few, many = (Rate.fit(lambda length, _, n=n: count(length, n)) for n in (tokens, 2 * tokens))
        return Around(few, many, (tokens, 2 * tokens))


Sizes = tuple[int, ...]
"""A sample whose image tokens leave on the way: its other positions, its image tokens, and those behind each cut."""


@dataclass(frozen=True)
class Falling:
    """What an llm costs whose image tokens leave between its layers: a polynomial of degree 2 in the positions that
    each part of it reads, and in the words among them where words judge.

    Attributes:
        factors: of ``terms``.
        row: FLOPs of each row of the head.
        words: whether words judge.
    """

    factors: tuple[float, ...]
    row: float
    words: bool

    def of(self, samples: Sequence[Sizes], rows: int) -> int:
        """A call on such samples, which see nothing of each other."""
        return round(self.factors[0] + self._sum(samples, 1) + self.row * rows)

    def pairs(self, samples: Sequence[Sizes]) -> float:
        """What of that goes with pairs of positions."""
        return self._sum(samples, linear(samples[0], self.words)) if samples else 0.0

    def without_pairs(self, cuts: int) -> Falling:
        """What it would cost if pairs of positions cost nothing."""
        kept = linear((1,) * (cuts + 2), self.words)
        return replace(self, factors=(*self.factors[:kept], *(0.0,) * (len(self.factors) - kept)))

    def _sum(self, samples: Sequence[Sizes], first: int) -> float:
        pairs = ((a, b) for sizes in samples for a, b in zip(self.factors, terms(sizes, self.words), strict=True))
        each = len(self.factors)
        return sum(a * b for number, (a, b) in enumerate(pairs) if number % each >= first)

    @staticmethod
    def fit(count: Callable[[Sizes, int], int], cuts: int, words: bool) -> Falling:
        """From ``count(sizes, rows)`` of short samples, which is of this form where every cut takes something.

        Args:
            cuts: how many there are.
            words: whether words judge.
        """
        samples = list(_short(cuts, words))
        table = np.array([terms(sizes, words) for sizes in samples], dtype=np.float64)
        scale = np.abs(table).max(0)
        row = (count(samples[0], 3) - count(samples[0], 1)) / 2
        costs = np.array([count(sizes, 1) - row for sizes in samples], dtype=np.float64)
        return Falling(tuple((np.linalg.solve(table / scale, costs) / scale).tolist()), row, words)


def terms(sizes: Sizes, words: bool) -> list[int]:
    """1, the positions of each part of the llm, and the words; then products of two of them."""
    own, *images = sizes
    lengths = [own + image for image in images]
    judging = [own**2, *(own * length for length in lengths)] if words else []
    return [1, *lengths, *([own] if words else []), *(length**2 for length in lengths), *judging]


def linear(sizes: Sizes, words: bool) -> int:
    """How many of the terms are no products."""
    return len(sizes) + words


def _short(cuts: int, words: bool) -> Iterator[Sizes]:
    """Yields short samples, one for each of the terms; at each cut of them some tokens leave."""

    def sample(own: int, part: int, more: int) -> Sizes:
        lengths = [SHORT * (3 + 3 * (cuts - number)) + more * (number == part) for number in range(cuts + 1)]
        return (own, *(length - own for length in lengths))

    yield sample(SHORT, 0, 0)
    for part in range(cuts + 1):
        for more in (SHORT // 2, SHORT):
            yield sample(SHORT, part, more)
    if words:
        yield sample(SHORT * 3 // 2, 0, 0)
        yield sample(SHORT * 2, 0, 0)
        for part in range(cuts + 1):
            yield sample(SHORT * 3 // 2, part, SHORT // 2)


class Staircase:
    """What an llm costs that works through a sequence in chunks (Mamba 2, xLSTM, Qwen3-Next).

    It is counted at the beginning of each block of lengths that occurs, and where a block is full. Longer ones cost in
    addition what short sequences say of positions and pairs. Right for chunks of one block or several, whether a part
    of a chunk costs as much as a whole one (Mamba 2) or is computed position by position (xLSTM).

    Args:
        count: FLOPs of one sequence of so many positions, the head on one of them.
        short: fitted to short sequences; its head and its attention are those of long ones.
    """

    def __init__(self, count: Callable[[int], int], short: Rate) -> None:
        self._count, self._short = cache(count), short

    def of(self, lengths: Sequence[int], rows: int) -> int:
        """FLOPs of sequences of these lengths with so many label rows."""
        return round(sum(map(self._sequence, lengths)) + self._short.row * rows)

    def pairs(self, lengths: Sequence[int]) -> float:
        """What of that goes with pairs of positions."""
        return self._short.pairs(lengths)

    def _sequence(self, length: int) -> int:
        counted = length if length % BLOCK == 0 else max(SHORT, length // BLOCK * BLOCK + 1)
        return self._count(counted) - self._short.of([counted], 1) + self._short.of([length], 0)
