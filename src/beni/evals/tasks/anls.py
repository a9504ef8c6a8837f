"""ANLS of DocVQA and ST-VQA (arXiv 1907.00490): 1 - edit distance / length of the longer text, 0 below a half, of the
nearest reference. The distance is rapidfuzz's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from beni.config.ranges import AtLeast, AtMost, Example
from beni.data.sample import Sample
from beni.evals.tasks.base import GeneratedTask, Row
from beni.evals.tasks.libraries import library


@final
@dataclass(frozen=True)
class Anls(GeneratedTask):
    """Average normalised Levenshtein similarity.

    Attributes:
        threshold: similarity below which an answer is worth nothing.
    """

    name: ClassVar[str] = "anls"
    threshold: Annotated[float, AtLeast(0), AtMost(1), Example("0.5")] = 0.5

    def judge(self, sample: Sample, said: str) -> Row:
        return {"score": anls(said, sample.right_answers, self.threshold)}


def anls(said: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """The similarity of an answer to the nearest reference, case and white space aside."""
    similarity = library("anls", "rapidfuzz", "rapidfuzz.distance").Levenshtein.normalized_similarity
    best = max(similarity(_plain(said), _plain(one)) for one in references)
    return best if best >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
