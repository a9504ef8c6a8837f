"""Changed answers: how many held-out examples two models answer differently, and which of the two is right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from beni.runs.read import Arm, Run, number


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
        ours, theirs = run.examples(), other.examples()
        for example in ours.keys() & theirs.keys():
            mine, yours = ours[example], theirs[example]
            score, other_score = number(mine.get("score")), number(yours.get("score"))
            if score is None or other_score is None:
                continue
            pairs += 1
            changed += mine.get("prediction") != yours.get("prediction")
            worse += score < other_score
            better += score > other_score
    return Changes(pairs, changed / pairs, worse / pairs, better / pairs) if pairs else None
