"""Relaxed accuracy of ChartQA (arXiv 2203.10244): a number may be off by 5 %, a text must be the same.

Numbers are read as in the evaluation of Pix2Struct: ``12%`` is 0.12, and 0 is compared as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from beni.config.ranges import AtLeast, Example
from beni.data.sample import Sample
from beni.evals.tasks.base import GeneratedTask, Row


@final
@dataclass(frozen=True)
class RelaxedAccuracy(GeneratedTask):
    """1 where the answer is a right one, or a number near one.

    Attributes:
        tolerance: largest relative difference of a number that counts as right.
    """

    name: ClassVar[str] = "relaxed_accuracy"
    tolerance: Annotated[float, AtLeast(0), Example("0.05")] = 0.05

    def judge(self, sample: Sample, said: str) -> Row:
        return {"score": float(any(self._right(said, one) for one in sample.right_answers))}

    def _right(self, said: str, expected: str) -> bool:
        ours, theirs = number(said), number(expected)
        if ours is not None and theirs:
            return abs(ours - theirs) / abs(theirs) <= self.tolerance
        return said.strip().lower() == expected.strip().lower()


def number(text: str) -> float | None:
    """The number that a text is; a percentage is a hundredth. None where it is none."""
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
