"""Changed answers: how many held-out examples two models answer differently, and which of the two is right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import ne

import numpy as np

from beni.analysis.stats import answered
from beni.runs.read import Arm, Run

METRIC = "eval/accuracy"


@dataclass(frozen=True)
class Changes:
    """Answers of one model against those of another, over the examples that both have scored.

    Args:
        pairs: examples compared, over all seeds.
        changed: share of them with another answer, 0 to 1.
        worse: share that the other model scores higher: for scores of 0 and 1, right there and wrong here.
        better: share that this model scores higher.
    """

    pairs: int
    changed: float
    worse: float
    better: float


def changed_answers(arm: Arm, baseline: Arm) -> Changes | None:
    """The arm against the baseline at each seed that both have finished; None without a common example."""
    return _changes((arm.finished[seed], baseline.finished[seed]) for seed in arm.finished if seed in baseline.finished)


def between_seeds(arm: Arm) -> Changes | None:
    """Each seed of the arm against the one before it: what chance alone changes. None with fewer than two seeds."""
    return _changes((later, earlier) for earlier, later in pairwise(arm.finished.values()))


def _changes(sides: Iterable[tuple[Run, Run]]) -> Changes | None:
    pairs = changed = worse = better = 0
    for run, other in sides:
        mine, yours = answered(run, METRIC), answered(other, METRIC)
        if mine is None or yours is None:
            continue
        (ours, scores), (theirs, others) = mine, yours
        if ours.ids != theirs.ids:
            _, here, there = np.intersect1d(ours.ids, theirs.ids, assume_unique=True, return_indices=True)
            ours, scores, theirs, others = ours.only(here), scores[here], theirs.only(there), others[there]
        pairs += len(ours.ids)
        changed += sum(map(ne, ours.predictions, theirs.predictions))
        worse += int((scores < others).sum())
        better += int((scores > others).sum())
    return Changes(pairs, changed / pairs, worse / pairs, better / pairs) if pairs else None
