"""Scores of held-out samples: the rows of scores.jsonl, and the flat keys of metrics.jsonl that sum them up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from beni.data.batch.collate import Item
from beni.data.images import BadImage, decode
from beni.data.metric import Metric, Reading
from beni.data.sample import Sample
from beni.evals.ablations import TRUE, Ablation
from beni.evals.dropping import dropping
from beni.evals.subject import Subject
from beni.types import ViewedImage


def score(subject: Subject, metric: Metric, samples: Iterable[Sample], ablation: Ablation) -> Iterator[dict[str, Any]]:
    """One row per sample whose pictures can be read, and changed: the fields of scores.jsonl but ``step``."""
    for group in groups(metric, samples, subject.batch_size):
        subject.between()
        for sample, readings in read(subject, metric, group, ablation):
            yield row_of(metric, sample, readings, ablation)


def read(
    subject: Subject, metric: Metric, group: Sequence[Sample], ablation: Ablation
) -> Iterator[tuple[Sample, dict[str, Reading]]]:
    """One forward pass: the readings of the candidates of each sample whose pictures can be read, and changed."""
    asked = [(sample, viewed) for sample in group if (viewed := _viewed(subject, sample, ablation)) is not None]
    texts = [metric.candidates(sample) for sample, _ in asked]
    items = [
        _read(subject, sample.answered(text), viewed)
        for (sample, viewed), own in zip(asked, texts, strict=True)
        for text in own
    ]
    with dropping(subject.model.fusion, ablation.dropped):
        given = iter(subject.read(items) if items else ())
    for (sample, _), own in zip(asked, texts, strict=True):
        yield sample, {text: next(given) for text in own}


def row_of(metric: Metric, sample: Sample, readings: dict[str, Reading], ablation: Ablation) -> dict[str, Any]:
    """The fields of scores.jsonl but ``step``."""
    verdict = metric.judge(sample, readings)
    return {
        "id": sample.id,
        "kind": sample.kind,
        "cluster": sample.cluster,
        "variant": ablation.name,
        "score": verdict.score,
        "loss": -readings[sample.answer].loglik,
        "prediction": verdict.prediction,
        "expected": sample.answer,
        "chance": 1 / len(sample.choices) if sample.choices else None,
    }


def summarise(rows: Iterable[dict[str, Any]], ablation: Ablation) -> dict[str, float]:
    """Rows of one ablation to the flat keys of metrics.jsonl; none where there are no rows."""
    chosen = [row for row in rows if row["variant"] == ablation.name]
    if not chosen:
        return {}
    suffix = ablation.suffix
    values = {f"eval/loss{suffix}": _mean(row["loss"] for row in chosen)}
    scored = [row for row in chosen if row["score"] is not None]
    if scored:
        values[f"eval/accuracy{suffix}"] = _mean(row["score"] for row in scored)
        if ablation == TRUE and all(row["chance"] is not None for row in scored):
            values["eval/chance"] = _mean(row["chance"] for row in scored)
        for kind in sorted({row["kind"] for row in scored if row["kind"]}):
            values[f"eval/accuracy{suffix}/{kind}"] = _mean(row["score"] for row in scored if row["kind"] == kind)
    return values


def _read(subject: Subject, sample: Sample, viewed: list[ViewedImage]) -> Item:
    """A sample as the model reads it: to its end."""
    encoded = subject.renderer.whole(sample, [image.markup for image in viewed])
    return Item(sample.id, encoded, viewed, sample.source, sample.asked)


def _viewed(subject: Subject, sample: Sample, ablation: Ablation) -> list[ViewedImage] | None:
    """What the model is shown of the pictures; None where one of them cannot be read, or has no other to be shown."""
    try:
        shown = ablation.of(sample, [decode(image) for image in sample.images])
    except BadImage:
        return None
    return None if shown is None else [subject.viewer(picture) for picture in shown]


def groups(metric: Metric, samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples with at most ``size`` texts to read together; one that has more by itself."""
    group: list[Sample] = []
    texts = 0
    for sample in samples:
        more = len(metric.candidates(sample))
        if group and texts + more > size:
            yield group
            group, texts = [], 0
        group.append(sample)
        texts += more
    if group:
        yield group


def _mean(values: Iterable[float]) -> float:
    numbers: Sequence[float] = list(values)
    return sum(numbers) / len(numbers)
