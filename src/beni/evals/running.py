"""An evaluation by a task: every sample with its own pictures, then with others, in batches that several processes may
share, and that are not scored again after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from beni.data.images import BadImage, decode
from beni.data.metric import Metric
from beni.data.sample import Sample
from beni.errors import ConfigError, DataError
from beni.evals.ablations import BLANK, FURTHER, TRUE, Ablation
from beni.evals.dropping import can_drop, dropping
from beni.evals.journal import Journal
from beni.evals.scores import groups, read, row_of
from beni.evals.sharing import Sharing
from beni.evals.subject import Asked, Subject
from beni.evals.tasks.base import (
    Choosy,
    Comparing,
    Detailed,
    GeneratedTask,
    ReadTask,
    Rephrasing,
    Row,
    Task,
    Totalling,
    means,
)
from beni.model.speaking import require_generates
from beni.types import IGNORE

NAMES = (BLANK.name, *FURTHER)
"""Ablations that may be asked for."""


@dataclass(frozen=True)
class Running:
    """What is scored, and how.

    Attributes:
        metric: of the source of the samples.
        samples: that can be read.
        ablations: names of those that are scored beside the samples as they are.
        attention: last layers of the llm whose attention to the pictures is measured; 0 measures none.
        step: of the weights; None where it is not known.
        tell: told what a person should know.
        told: called with samples done and samples altogether.
    """

    subject: Subject
    task: Task
    metric: Metric
    samples: Sequence[Sample]
    ablations: Sequence[str]
    attention: int
    step: int | None
    tell: Callable[[str], None]
    told: Callable[[int, int], None]

    def rows(self, journal: Journal, sharing: Sharing) -> list[Row]:
        """All rows, on every process: those that journals have already, and those that the processes score now.

        Raises:
            DataError: when a sample does not fit the task, or none can be read.
            CompositionError: when answers are to be generated and the llm cannot.
            ResourceError: when another process has ended before it was done.
        """
        self._require()
        done, number, turn, whole = 0, 0, 0, len(self.samples) * (1 + len(self.ablations))
        samples, found = self.samples, []
        for variant in range(1 + len(self.ablations)):
            sharing.scores(variant)
            ablation = TRUE if variant == 0 else self._ablation(self.ablations[variant - 1], samples)
            first = number
            for group in () if ablation is None else self._groups(samples):
                if number not in journal.before:
                    if sharing.mine(turn):
                        self.subject.between()
                        assert ablation is not None
                        journal.add(number, [{"step": self.step, **row} for row in self._group(group, ablation)])
                    turn += 1
                number += 1
                done += len(group)
                self.told(done, whole)
            rows = self._gathered(range(first, number), journal, sharing)
            if variant == 0:
                samples = self._read(rows, samples)
            elif ablation is not None:
                self._tell_missing(rows, samples, ablation)
            found += rows
        self._tell_cut(found)
        return self._complete(found)

    def _gathered(self, numbers: range, journal: Journal, sharing: Sharing) -> list[Row]:
        """The rows of some groups in their order, whichever process has scored them."""
        mine = {number: rows for number, rows in journal.groups.items() if number in numbers}
        whole = {number: rows for each in (journal.before, *sharing.gather(mine)) for number, rows in each.items()}
        return [row for number in numbers for row in whole[number]]

    def _require(self) -> None:
        if strange := [name for name in self.ablations if name not in NAMES]:
            raise ConfigError(f"ablation {strange[0]}, expected some of {', '.join(NAMES)}\n  fix: leave it out")
        if isinstance(self.task, GeneratedTask):
            require_generates(self.subject.model.llm)
            limit = self.subject.model.llm.max_positions
            if limit is not None and self.task.new_tokens >= limit:
                raise ConfigError(
                    f"task.new_tokens={self.task.new_tokens}, expected less than the {limit} positions of the llm\n"
                    f"  fix: set task.new_tokens={min(type(self.task).new_tokens, limit - 1)}"
                )
        if self.attention and self.attention > (depth := len(self.subject.model.llm.layers())):
            raise ConfigError(
                f"--attention={self.attention}, expected at most {depth}, the layers of the llm\n"
                f"  fix: set --attention={depth}"
            )
        task = self.task
        bad = [why for sample in self.samples if isinstance(task, Choosy) and (why := task.unfit(sample)) is not None]
        if bad:
            raise DataError(f"{len(bad)} of {len(self.samples)} samples do not fit the task: {bad[0]}")

    def _ablation(self, name: str, samples: Sequence[Sample]) -> Ablation | None:
        """None where it cannot be had, which is told."""
        if name == "dropped" and not can_drop(self.subject.model.fusion):
            self.tell("samples are not scored dropped: this fusion reads the encoders' features too")
            return None
        if name != BLANK.name and not any(sample.images for sample in samples):
            self.tell(f"samples are not scored {name}: none has an image")
            return None
        return BLANK if name == BLANK.name else FURTHER[name](samples)

    def _groups(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        size = self.subject.batch_size
        if isinstance(self.task, ReadTask):
            return groups(self.task.metric(self.metric), samples, size)
        return (samples[first : first + size] for first in range(0, len(samples), size))

    def _group(self, group: Sequence[Sample], ablation: Ablation) -> Iterator[Row]:
        if isinstance(self.task, ReadTask):
            return self._readings(self.task, group, ablation)
        assert isinstance(self.task, GeneratedTask)
        return self._answers(self.task, group, ablation)

    def _readings(self, task: ReadTask, group: Sequence[Sample], ablation: Ablation) -> Iterator[Row]:
        metric = task.metric(self.metric)
        for sample, readings in read(self.subject, metric, group, ablation):
            row = row_of(metric, sample, readings, ablation)
            row |= task.more(sample, readings) if isinstance(task, Detailed) else {}
            if self.attention and ablation == TRUE:
                labels = self.subject.renderer.whole(sample, self._markups(sample)).labels
                asked = Asked(sample, [decode(image) for image in sample.asked_images])
                row |= self._attention(asked, labels[labels != IGNORE].tolist())
            yield row

    def _answers(self, task: GeneratedTask, group: Sequence[Sample], ablation: Ablation) -> Iterator[Row]:
        shown = [(sample, pictures) for sample in group if (pictures := _pictures(sample, ablation)) is not None]
        asked = [
            Asked(task.asked(sample) if isinstance(task, Rephrasing) else sample, pictures)
            for sample, pictures in shown
        ]
        with dropping(self.subject.model.fusion, ablation.dropped):
            said = self.subject.say(asked, task.new_tokens) if asked else []
        ends = self.subject.renderer.tokens.eos
        for one, (sample, _), ids in zip(asked, shown, said, strict=True):
            text = self.subject.renderer.decode(ids)
            row = {
                "id": sample.id,
                "kind": sample.kind,
                "cluster": sample.cluster,
                "variant": ablation.name,
                **task.judge(sample, text),
                "prediction": text,
                "expected": sample.answer,
                "ended": bool(ids) and ids[-1] in ends,
                "chance": 1 / len(sample.choices) if sample.choices else None,
            }
            if not row["ended"] and len(ids) < task.new_tokens:
                row["cut"] = len(ids)
            yield row | (self._attention(one, ids) if self.attention and ablation == TRUE else {})

    def _attention(self, asked: Asked, ids: Sequence[int]) -> Row:
        """The share of an answer's attention that goes to the pictures; None where there is none to be read."""
        if not asked.pictures or not ids:
            return {"attention": None}
        return {"attention": self.subject.look(asked, ids, self.attention).attention.shares.get(0)}

    def _markups(self, sample: Sample) -> list:
        return [self.subject.viewer(decode(image)).markup for image in sample.images]

    def _read(self, rows: Sequence[Row], samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples that could be scored as they are: others are not scored otherwise either."""
        read = {row["id"] for row in rows}
        if not read:
            raise DataError("no sample has readable images\n  fix: check data.path and data.images")
        if len(read) == len(samples):
            return samples
        self.tell(f"{len(samples) - len(read)} samples are left out: their images cannot be read")
        return [sample for sample in samples if sample.id in read]

    def _tell_missing(self, rows: Sequence[Row], samples: Sequence[Sample], ablation: Ablation) -> None:
        if len(rows) < len(samples) and rows:
            self.tell(
                f"{len(samples) - len(rows)} samples are not scored {ablation.name}: there is no other image to show"
            )

    def _tell_cut(self, rows: Sequence[Row]) -> None:
        if isinstance(self.task, GeneratedTask) and (count := sum("cut" in row for row in rows)):
            self.tell(
                f"{count} of {len(rows)} answers end before task.new_tokens={self.task.new_tokens}: the llm has "
                f"{self.subject.model.llm.max_positions} positions"
            )

    def _complete(self, rows: Sequence[Row]) -> list[Row]:
        if not isinstance(self.task, Comparing):
            return list(rows)
        out = []
        for name in dict.fromkeys(row["variant"] for row in rows):
            out += self.task.complete([row for row in rows if row["variant"] == name])
        return out


def values_of(task: Task, rows: Sequence[Row]) -> dict[str, float]:
    """The flat keys of a summary."""
    values: dict[str, float] = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        own, ablation = [row for row in rows if row["variant"] == name], Ablation(name)
        values |= task.totals(own, ablation) if isinstance(task, Totalling) else means(task, own, ablation)
    looked = [row["attention"] for row in rows if row.get("attention") is not None]
    return values | ({"attention_on_images": float(np.mean(looked))} if looked else {})


def _pictures(sample: Sample, ablation: Ablation) -> list | None:
    """What is shown in front of the answer; None where one cannot be read, or has no other to be shown."""
    try:
        return ablation.of(sample, [decode(image) for image in sample.asked_images])
    except BadImage:
        return None
