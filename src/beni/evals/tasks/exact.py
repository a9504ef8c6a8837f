"""Exact match: the answer is one of those that count as right."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar, final

from beni.data.sample import Sample
from beni.evals.tasks.base import GeneratedTask, Row

PUNCTUATION = str.maketrans("", "", string.punctuation)


@final
@dataclass(frozen=True)
class ExactMatch(GeneratedTask):
    """1 where the answer equals a reference, else 0.

    Attributes:
        ignore_case: compare lower case.
        ignore_punctuation: compare without ASCII punctuation, and one space for several.
    """

    name: ClassVar[str] = "exact_match"
    ignore_case: bool = False
    ignore_punctuation: bool = False

    def judge(self, sample: Sample, said: str) -> Row:
        right = {self._plain(text) for text in sample.right_answers}
        return {"score": float(self._plain(said) in right)}

    def _plain(self, text: str) -> str:
        text = text.lower() if self.ignore_case else text
        text = " ".join(text.translate(PUNCTUATION).split()) if self.ignore_punctuation else text
        return text.strip()
