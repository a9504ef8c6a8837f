"""How a held-out sample is scored. A source says which metric its samples are scored by; to add one, derive from
``Metric`` here and let a source name it.

The model is asked by teacher forcing: it reads a text in the answer's place and says how likely each token was. That
the most likely token is the text's own everywhere, the end token included, is the same event as that greedy generation
says just this text, and costs one forward pass however long the answer is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from beni.data.sample import Sample


@dataclass(frozen=True)
class Reading:
    """What the model gives for a text in the answer's place.

    Attributes:
        loglik: mean log-likelihood of its tokens, the end token included.
        exact: every token of it is the most likely one.
        greedy: the most likely tokens, as text.
        tokens: how many it has, the end token included.
    """

    loglik: float
    exact: bool
    greedy: str
    tokens: int = 1


@dataclass(frozen=True)
class Verdict:
    """What a metric makes of the readings of a sample.

    Attributes:
        score: in [0, 1]; None where the sample has a loss and nothing else.
        prediction: what the model says, as far as the metric asks; None where it does not.
    """

    score: float | None
    prediction: str | None


class Metric(ABC):
    """How a sample is scored. Subclasses are final, and equal where they score alike.

    Attributes:
        name: as messages say it.
    """

    name: ClassVar[str]

    @abstractmethod
    def candidates(self, sample: Sample) -> tuple[str, ...]:
        """The different texts that the model is to read in the answer's place, ``sample.answer`` among them."""

    @abstractmethod
    def judge(self, sample: Sample, readings: Mapping[str, Reading]) -> Verdict:
        """A verdict from the reading of each candidate, in their order."""


@dataclass(frozen=True)
class ExactAnswer(Metric):
    """1 where greedy generation says one of the answers that count as right (``Sample.right_answers``), else 0."""

    name = "answer"

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        return sample.right_answers

    def judge(self, sample: Sample, readings: Mapping[str, Reading]) -> Verdict:
        expected = readings[sample.answer]
        hit = next((reading for reading in readings.values() if reading.exact), None)
        return Verdict(0.0, expected.greedy) if hit is None else Verdict(1.0, hit.greedy)


@dataclass(frozen=True)
class BestChoice(Metric):
    """1 where, of ``Sample.choices``, the expected answer has the highest mean log-likelihood, else 0."""

    name = "choice"

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        return tuple(dict.fromkeys(sample.choices))

    def judge(self, sample: Sample, readings: Mapping[str, Reading]) -> Verdict:
        best = max(readings, key=lambda choice: readings[choice].loglik)
        return Verdict(float(best == sample.answer), best)


@dataclass(frozen=True)
class LossOnly(Metric):
    """No score: a description can be right in many words."""

    name = "loss"

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        return (sample.answer,)

    def judge(self, sample: Sample, readings: Mapping[str, Reading]) -> Verdict:
        return Verdict(None, None)
