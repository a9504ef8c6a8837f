"""The score of training: what a run's own evaluations score, by the metric of its data, to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from beni.data.metric import Metric
from beni.evals.ablations import Ablation
from beni.evals.scores import summarise
from beni.evals.tasks.base import ReadTask, Row


@final
@dataclass(frozen=True)
class RunScore(ReadTask):
    """Accuracy and loss as ``metrics.jsonl`` has them."""

    name: ClassVar[str] = "eval/accuracy"

    def metric(self, own: Metric) -> Metric:
        return own

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        return summarise(rows, ablation)
