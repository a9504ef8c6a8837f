"""Perplexity of the expected answers: exp of the mean negative log-likelihood of their tokens, end tokens included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from beni.data.metric import LossOnly, Metric, Reading
from beni.data.sample import Sample
from beni.evals.ablations import Ablation
from beni.evals.tasks.base import ReadTask, Row


@final
@dataclass(frozen=True)
class Perplexity(ReadTask):
    """Perplexity over all tokens of the set; the ``loss`` of a row is the mean over its own."""

    name: ClassVar[str] = "perplexity"

    def metric(self, own: Metric) -> Metric:
        return LossOnly()

    def more(self, sample: Sample, readings: Mapping[str, Reading]) -> Row:
        return {"tokens": readings[sample.answer].tokens}

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        tokens = sum(row["tokens"] for row in rows)
        loss = sum(row["loss"] * row["tokens"] for row in rows) / tokens
        return {f"perplexity{ablation.suffix}": math.exp(loss), f"loss{ablation.suffix}": loss}
