"""What an llm, and a fusion's layers around its own, cost at any length, from dry runs at a few short ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

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
        self._count, self._short, self.pair = cache(count), short, short.pair

    def of(self, lengths: Sequence[int], rows: int) -> int:
        """FLOPs of sequences of these lengths with so many label rows."""
        return round(sum(map(self._sequence, lengths)) + self._short.row * rows)

    def _sequence(self, length: int) -> int:
        counted = length if length % BLOCK == 0 else max(SHORT, length // BLOCK * BLOCK + 1)
        return self._count(counted) - self._short.of([counted], 1) + self._short.of([length], 0)
