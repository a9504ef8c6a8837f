"""Yes or no, as POPE asks about objects (arXiv 2305.10355): accuracy, precision, recall and F1 of "yes", and its share.

An answer is read as POPE's program reads it: its first sentence says no where a word of it is no or not, else yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from beni.data.sample import Sample
from beni.evals.ablations import Ablation
from beni.evals.tasks.base import GeneratedTask, Row, mean, means

NO = ("No", "not", "no")


@final
@dataclass(frozen=True)
class YesNo(GeneratedTask):
    """1 where the answer says yes or no as the expected one does."""

    name: ClassVar[str] = "accuracy"

    def unfit(self, sample: Sample) -> str | None:
        if sample.answer.strip(" .").lower() in ("yes", "no"):
            return None
        return f"{sample} has the answer {sample.answer!r}, expected yes or no\n  fix: set task=exact"

    def judge(self, sample: Sample, said: str) -> Row:
        answer, right = says_yes(said), says_yes(sample.answer.strip(" .").capitalize())
        return {"score": float(answer == right), "yes": answer, "expected_yes": right}

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        hits = sum(row["yes"] and row["expected_yes"] for row in rows)
        said, there = sum(row["yes"] for row in rows), sum(row["expected_yes"] for row in rows)
        values = means(self, rows, ablation) | {
            f"{name}{ablation.suffix}": value
            for name, value in (
                ("precision", hits / said if said else 0.0),
                ("recall", hits / there if there else 0.0),
                ("f1", 2 * hits / (said + there) if said + there else 0.0),
                ("yes_share", mean([float(row["yes"]) for row in rows])),
            )
        }
        return values


def says_yes(text: str) -> bool:
    """Whether an answer is taken for a yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in NO)
