"""Does an arm look at the picture? Its score under every ablation of the pictures, and what the true picture adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from beni.analysis.stats import Difference, Summary, paired_difference, summarize, variant_metric
from beni.runs.read import Arm

TRUE = "true"


@dataclass(frozen=True)
class Variant:
    """An arm's score on changed pictures, and its score on the true ones minus that, paired by seed and example."""

    name: str
    score: Summary
    gap: Difference | None


def names(arms: Iterable[Arm]) -> list[str]:
    """Ablations that any finished run has scored, in the order of scores.jsonl."""
    found = (variant for arm in arms for run in arm.finished.values() for variant in run.variants)
    return [variant for variant in dict.fromkeys(found) if variant != TRUE]


def scores(arm: Arm, metric: str, wanted: Iterable[str]) -> list[Variant]:
    """The arm under each ablation in ``wanted``; without runs that scored it the summary is empty."""
    found = []
    for name in wanted:
        changed = variant_metric(metric, name)
        score = summarize(arm, changed)
        found.append(Variant(name, score, paired_difference(arm, arm, metric, changed) if score.values else None))
    return found
