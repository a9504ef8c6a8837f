"""What a task is: how held-out samples are asked, what an answer is worth, and what the scores of all make together.

A task is a final dataclass in a file of its own, whose fields are what ``task.<field>=`` sets. The command knows it by
its line in ``registry.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from beni.config.ranges import AtLeast, Example
from beni.data.metric import Metric, Reading
from beni.data.sample import Sample
from beni.evals.ablations import TRUE, Ablation

Row = dict[str, Any]
"""A line of scores.jsonl; ``score`` is within the ``bounds`` of the task, None where a sample has none by itself."""


@dataclass(frozen=True)
class Task(ABC):
    """How samples are scored.

    Attributes:
        name: of its score, as the flat keys of a summary begin.
        averages: whether the score of the set is the mean of those of its samples.
        bounds: least and greatest score of a sample.
    """

    name: ClassVar[str]
    averages: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)


@dataclass(frozen=True)
class GeneratedTask(Task):
    """A task for which the model says an answer, greedily.

    Attributes:
        new_tokens: of an answer, at most.
    """

    new_tokens: Annotated[int, AtLeast(1), Example("32")] = 32

    @abstractmethod
    def judge(self, sample: Sample, said: str) -> Row:
        """``score`` of an answer, and further fields of its row."""


@dataclass(frozen=True)
class ReadTask(Task):
    """A task for which the model reads texts in the answer's place, and says how likely each was."""

    @abstractmethod
    def metric(self, own: Metric) -> Metric:
        """What is read and judged.

        Args:
            own: how the source of the samples scores them.
        """


@runtime_checkable
class Choosy(Protocol):
    """A task that not every sample fits."""

    def unfit(self, sample: Sample) -> str | None:
        """Why a sample cannot be scored by this task; None where it can."""
        ...


@runtime_checkable
class Rephrasing(Protocol):
    """A task that asks in words of its own."""

    def asked(self, sample: Sample) -> Sample:
        """The sample as the model is asked it."""
        ...


@runtime_checkable
class Detailed(Protocol):
    """A task whose rows say more of what was read."""

    def more(self, sample: Sample, readings: Mapping[str, Reading]) -> Row:
        """Further fields of a row."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """A task whose scores need all rows."""

    def complete(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of one ablation with their scores."""
        ...


@runtime_checkable
class Totalling(Protocol):
    """A task whose scores of a set are not, or not only, the means of its rows."""

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        """The rows of one ablation, at least one, to flat keys."""
        ...


def means(task: Task, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
    """The rows of one ablation, at least one, to flat keys: the mean score, and that of each kind of question."""
    suffix, scored = ablation.suffix, [row for row in rows if row["score"] is not None]
    values = {f"{task.name}{suffix}": mean([row["score"] for row in scored])} if scored else {}
    for kind in sorted({row["kind"] for row in scored if row["kind"]}):
        values[f"{task.name}{suffix}/{kind}"] = mean([row["score"] for row in scored if row["kind"] == kind])
    if ablation == TRUE and scored and all(row.get("chance") is not None for row in scored):
        values["chance"] = mean([row["chance"] for row in scored])
    return values


def mean(values: Sequence[float]) -> float:
    """The mean of at least one number."""
    return sum(values) / len(values)
