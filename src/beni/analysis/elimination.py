"""Which arms of a study can no longer win: paired t-tests after each block of seeds, with a bound on ever dropping the
best arm.

- A block is one seed of every arm that is left. After each, every arm is compared with every other one by the per-seed
  differences of their scores, one-sided.
- The probability of error is divided among the rivals of an arm and, as ``1 / (n (n - 1))`` of it for the look at n
  seeds, among all looks (a union bound, so it holds whenever the study is stopped or looked at).
- Assumed: the per-seed differences of two arms are normal, with a variance of each pair's own. A bound without this
  (betting, Waudby-Smith and Ramdas 2024, arXiv 2010.09686) needs dozens of seeds to drop anything. Where the best arm
  sometimes fails to train, the assumption does not hold. What that does is simulated in
  benchmarks/study_statistics.py.
- So that differences that are equal by chance, as those of rounded scores, prove nothing, the deviation of a pair
  counts as at least the median of all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beni.analysis.inference import t_above, t_quantile

Block = Mapping[str, float | None]
"""Arm -> its score under one seed, the higher the better; ``None`` where it has ended without one."""


@dataclass(frozen=True)
class Dropped:
    """An arm that can no longer win.

    Args:
        winner: the arm that beats it.
        seeds: how many seeds both had.
        difference: mean of the winner's lead.
        bound: what the lead is at least, at the error that this look was given; above 0.
    """

    winner: str
    seeds: int
    difference: float
    bound: float

    def __str__(self) -> str:
        return (
            f"{self.winner} is better by {self.difference:.3f} after {self.seeds} seeds, and by at least "
            f"{self.bound:.3f} at the error of study.stop"
        )


def eliminate(arms: Sequence[str], blocks: Sequence[Block], error: float) -> dict[str, Dropped]:
    """Arms that can no longer win, as after each of the blocks in turn.

    Args:
        blocks: seeds in the order in which they are run; one that lacks an arm that is left ends the look.
        error: probability of ever dropping the best arm, between 0 and 1.
    """
    dropped: dict[str, Dropped] = {}
    for end in range(1, len(blocks) + 1):
        left = [arm for arm in arms if arm not in dropped]
        if any(arm not in blocks[end - 1] for arm in left):
            break
        dropped |= _beaten(left, blocks[:end], error / max(1, len(arms) - 1))
    return dropped


def _beaten(left: Sequence[str], blocks: Sequence[Block], error: float) -> dict[str, Dropped]:
    scores = np.array([[np.nan if block[arm] is None else block[arm] for arm in left] for block in blocks], dtype=float)
    leads = scores[:, None, :] - scores[:, :, None]  # (seeds, arm, rival)
    known = ~np.isnan(leads)
    seeds = known.sum(0)
    lead = np.where(known, leads, 0).sum(0) / np.maximum(seeds, 1)
    squares = (np.where(known, leads - lead, 0) ** 2).sum(0)
    deviation = np.sqrt(squares / np.maximum(seeds - 1, 1))
    pairs = (seeds >= 2) & ~np.eye(len(left), dtype=bool)
    if not pairs.any():
        return {}
    deviation = np.maximum(deviation, np.median(deviation[pairs]))
    found: dict[str, Dropped] = {}
    for index, arm in enumerate(left):
        rival = int(np.argmax(np.where(pairs[index], lead[index], -np.inf)))
        n, mean, se = int(seeds[index, rival]), float(lead[index, rival]), float(deviation[index, rival])
        if not pairs[index, rival] or mean <= 0 or se == 0:
            continue
        own = error / (n * (n - 1))
        if t_above(mean * math.sqrt(n) / se, n - 1) <= own:
            bound = mean - t_quantile(1 - own, n - 1) * se / math.sqrt(n)
            found[arm] = Dropped(left[rival], n, mean, bound)
    return found
