"""A gallery for the report: held-out pictures with what the model answers, and what it answers under each ablation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image as Picture

from beni.data.images import BadImage, decode
from beni.data.sample import Sample
from beni.evals.ablations import ABLATIONS, TRUE
from beni.evals.subject import Asked, Subject
from beni.runs.files import GALLERY, PICTURES

THUMBNAIL = 384
"""Pixels of a picture's longer side."""


@dataclass(frozen=True)
class GalleryItem:
    """One sample of a gallery.

    Attributes:
        pictures: thumbnails by the names of their files.
        line: of gallery.jsonl.
    """

    pictures: dict[str, Picture]
    line: dict[str, Any]


def draw_gallery(subject: Subject, samples: Sequence[Sample], rows: Sequence[dict[str, Any]]) -> list[GalleryItem]:
    """Lets the model answer; greedily, not teacher-forced. Called by all ranks.

    Args:
        rows: rows of scores.jsonl of these samples; where there is a score it decides right or wrong.
    """
    scores = {row["id"]: row for row in rows if row["variant"] == TRUE.name}
    shown = []
    for first in range(0, len(samples), subject.batch_size):  # so many are decoded at a time
        readable = [(sample, _pictures(sample)) for sample in samples[first : first + subject.batch_size]]
        decoded = [(sample, pictures) for sample, pictures in readable if pictures]
        said = {
            f"prediction{ablation.suffix}": subject.answer(
                [
                    Asked(sample, [ablation.change(picture) for picture in pictures[: len(sample.asked_images)]])
                    for sample, pictures in decoded
                ]
            )
            for ablation in ABLATIONS
        }
        for i, (sample, pictures) in enumerate(decoded):
            answers = {name: texts[i] for name, texts in said.items()}
            shown.append(_shown(sample, pictures, answers, scores.get(sample.id, {})))
    return shown


def write_gallery(folder: Path, gallery: Sequence[GalleryItem]) -> None:
    """Writes gallery.jsonl and gallery/*.png."""
    (folder / PICTURES).mkdir(exist_ok=True)
    for one in gallery:
        for name, picture in one.pictures.items():
            picture.save(folder / name)
    lines = "".join(json.dumps(one.line, ensure_ascii=False) + "\n" for one in gallery)
    (folder / GALLERY).write_text(lines)


def _pictures(sample: Sample) -> list[Picture]:
    """All of a sample; none where one of them cannot be read: it was not scored either."""
    try:
        return [decode(image) for image in sample.images]
    except BadImage:
        return []


def _shown(sample: Sample, pictures: list[Picture], answers: Mapping[str, str], row: Mapping[str, Any]) -> GalleryItem:
    said, scored = answers[f"prediction{TRUE.suffix}"], row.get("score") is not None
    chosen = row.get("prediction") if sample.choices and scored else None
    stem = hashlib.sha256(sample.id.encode()).hexdigest()[:12]
    for picture in pictures:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    files = {f"{PICTURES}/{stem}-{i}.png": picture for i, picture in enumerate(pictures)}
    line = {
        "id": sample.id,
        "kind": sample.kind,
        "question": sample.question,
        "expected": sample.answer,
        **answers,
        "choice": chosen if chosen != said else None,
        "images": list(files),
        "correct": bool(row["score"]) if scored else said in sample.right_answers,
    }
    return GalleryItem(files, line)
