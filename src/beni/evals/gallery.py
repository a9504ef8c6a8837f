"""A gallery for the report: held-out pictures with what the model answers, and what it answers to a blank one.

Beside each answer stand drawings to be laid over its pictures: what the selector keeps, what other stages have left,
and what the answer looks at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image as Picture

from beni.data.images import BadImage, decode
from beni.data.sample import Sample
from beni.evals.ablations import ALWAYS, TRUE
from beni.evals.drawings import Artist, Drawing, artist_of, outlined
from beni.evals.subject import Asked, Subject
from beni.model.pictures import Looked
from beni.runs.files import GALLERY, PICTURES
from beni.types import ImageLayout

THUMBNAIL = 384
"""Pixels of a picture's longer side."""


@dataclass(frozen=True)
class GalleryItem:
    """One sample of a gallery.

    Attributes:
        pictures: thumbnails by the names of their files.
        line: of gallery.jsonl.
        overlays: drawings to be laid over them, by the names of their files.
    """

    pictures: dict[str, Picture]
    line: dict[str, Any]
    overlays: dict[str, Picture] = field(default_factory=dict)


def draw_gallery(
    subject: Subject,
    samples: Sequence[Sample],
    rows: Sequence[dict[str, Any]],
    attention: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[GalleryItem]:
    """Lets the model answer; greedily, not teacher-forced. Called by all ranks.

    Args:
        rows: rows of scores.jsonl of these samples; where there is a score it decides right or wrong.
        attention: last layers of the llm whose attention is drawn; 0 draws none.
        tell: is told why no attention is drawn, where it was to be.
    """
    scores = {row["id"]: row for row in rows if row["variant"] == TRUE.name}
    artist, unread, shown = artist_of(subject.model), "", []
    for first in range(0, len(samples), subject.batch_size):  # so many are decoded at a time
        readable = [(sample, _pictures(sample)) for sample in samples[first : first + subject.batch_size]]
        decoded = [(sample, pictures) for sample, pictures in readable if pictures]
        asked = {
            ablation: [
                Asked(sample, ablation.of(sample, pictures[: len(sample.asked_images)]) or [])
                for sample, pictures in decoded
            ]
            for ablation in ALWAYS
        }
        said = {ablation: subject.say(some) for ablation, some in asked.items()}
        for i, (sample, pictures) in enumerate(decoded):
            answers = {f"prediction{a.suffix}": subject.renderer.decode(ids[i]) for a, ids in said.items()}
            looked = subject.look(asked[TRUE][i], said[TRUE][i], attention)
            unread = looked.attention.unread or unread
            layouts = [subject.viewer(picture).layout for picture in asked[TRUE][i].pictures]
            one = _shown(sample, pictures, answers, scores.get(sample.id, {}))
            shown.append(_drawn(one, artist, layouts, looked))
    if unread:
        tell(unread)
    return shown


def write_gallery(folder: Path, gallery: Sequence[GalleryItem]) -> None:
    """Writes gallery.jsonl and gallery/*.png."""
    (folder / PICTURES).mkdir(exist_ok=True)
    for one in gallery:
        for name, picture in (one.pictures | one.overlays).items():
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


def _drawn(item: GalleryItem, artist: Artist, layouts: Sequence[ImageLayout], looked: Looked) -> GalleryItem:
    """The item with drawings over its pictures.

    Args:
        layouts: how each picture became views; those behind the answer are not among them.
    """
    overlays, lines = {}, []
    for image, (layout, (name, picture)) in enumerate(zip(layouts, item.pictures.items(), strict=False)):
        for i, drawing in enumerate(drawings_of(artist, looked, image, layout, picture.size)):
            file = f"{name.removesuffix('.png')}-{i}.png"
            overlays[file] = drawing.overlay
            told = {"image": image, "name": drawing.name, "part": drawing.part, "note": drawing.note}
            lines.append(told | {"file": file})
    line = item.line | {"attention": looked.attention.shares.get(0), "drawings": lines}
    return replace(item, line=line, overlays=overlays)


def drawings_of(
    artist: Artist, looked: Looked, image: int, layout: ImageLayout, size: tuple[int, int]
) -> Iterator[Drawing]:
    """What is laid over one image of a conversation.

    Args:
        looked: what the model has left of all of them.
        image: its number among them.
        size: (width, height) of the picture that is drawn over.
    """
    if (crops := outlined(layout, size)) is not None:
        yield crops
    for name, pictures in looked.pictures.items():
        yield from artist.of_stage(name, layout, [values for of, values in pictures if of == image], size)
    if (values := looked.attention.images.get(image)) is not None:
        drawing = artist.attention(layout, values, size)
        if drawing is not None:
            yield drawing
