"""What captions are worth beside those of people, as COCO scores them (arXiv 1504.00325): BLEU-4 by sacrebleu, CIDEr-D
by pycocoevalcap.

COCO's program splits words with the Java program of Stanford's parser, in lower case, and takes punctuation out. Here
words are split at white space after that, so scores differ a little from those of papers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from beni.config.ranges import AtLeast, Example
from beni.data.sample import Sample
from beni.errors import DataError
from beni.evals.ablations import Ablation
from beni.evals.tasks.base import GeneratedTask, Row
from beni.evals.tasks.libraries import library

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
FEWEST = 2
"""Samples that CIDEr needs: how much a word tells is counted over all of them."""


@final
@dataclass(frozen=True)
class Bleu(GeneratedTask):
    """BLEU-4 of the whole set in [0, 1], of the words that ``words`` gives, without smoothing; a row has that of its
    sentence, with sacrebleu's (arXiv 1804.08771).
    """

    name: ClassVar[str] = "bleu"
    averages: ClassVar[bool] = False
    new_tokens: Annotated[int, AtLeast(1), Example("64")] = 64

    def judge(self, sample: Sample, said: str) -> Row:
        sentence_bleu = library("bleu", "sacrebleu", "sacrebleu").sentence_bleu
        score = sentence_bleu(words(said), [words(one) for one in sample.right_answers], tokenize="none").score
        return {"score": score / 100, "references": list(sample.right_answers)}

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        most = max(len(row["references"]) for row in rows)
        # sacrebleu wants as many references of each; one that is None is none
        columns = [[(*map(words, row["references"]), *[None] * most)[i] for row in rows] for i in range(most)]
        corpus_bleu, said = library("bleu", "sacrebleu", "sacrebleu").corpus_bleu, [row["prediction"] for row in rows]
        whole = corpus_bleu([words(one) for one in said], columns, smooth_method="none", tokenize="none")
        return {f"bleu{ablation.suffix}": whole.score / 100}


@final
@dataclass(frozen=True)
class Cider(GeneratedTask):
    """CIDEr-D (arXiv 1411.5726), between 0 and 10; a score of 1 is usual for good captions."""

    name: ClassVar[str] = "cider"
    bounds: ClassVar[tuple[float, float]] = (0.0, 10.0)
    new_tokens: Annotated[int, AtLeast(1), Example("64")] = 64

    def judge(self, sample: Sample, said: str) -> Row:
        return {"score": None, "references": list(sample.right_answers)}

    def complete(self, rows: Sequence[Row]) -> list[Row]:
        if len(rows) < FEWEST:
            raise DataError(
                f"CIDEr counts words over all samples, and there is {len(rows)}\n  fix: score at least {FEWEST}, "
                "or set task=bleu"
            )
        scorer = library("cider", "pycocoevalcap", "pycocoevalcap.cider.cider").Cider()
        said = {i: [words(row["prediction"])] for i, row in enumerate(rows)}
        references = {i: [words(one) for one in row["references"]] for i, row in enumerate(rows)}
        _, scores = scorer.compute_score(references, said)
        return [row | {"score": float(score)} for row, score in zip(rows, scores, strict=True)]


def words(text: str) -> str:
    """The words of a text in lower case, with a space between."""
    return " ".join(WORD.findall(text.lower()))
