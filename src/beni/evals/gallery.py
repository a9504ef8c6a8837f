"""A gallery for the report: held-out pictures with what the model answers, and what it answers when it sees nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as Picture

from beni.data.batch.collate import stack_views
from beni.data.images import BadImage, blank_like, decode
from beni.data.sample import Sample
from beni.evals.scores import Scorer
from beni.nn.precision import autocast
from beni.runs.files import GALLERY, PICTURES
from beni.types import ImageInputs, SampleInputs, to_device

LONGEST_ANSWER = 32
THUMBNAIL = 384
"""Pixels of a picture's longer side."""


@dataclass(frozen=True)
class Shown:
    """One sample of a gallery.

    Attributes:
        pictures: thumbnails by the names of their files.
        line: of gallery.jsonl.
    """

    pictures: dict[str, Picture]
    line: dict[str, Any]


def draw_gallery(
    scorer: Scorer, samples: Sequence[Sample], rows: Sequence[dict[str, Any]], together: bool
) -> list[Shown]:
    """Lets the model answer; greedily, not teacher-forced. Called by all ranks.

    Args:
        rows: rows of scores.jsonl of these samples; where there is a score it decides right or wrong.
        together: the model is sharded, so ranks must go on until all have their answers.
    """
    scores = {row["id"]: row for row in rows if row["variant"] == "true"}
    shown = []
    for sample in samples:
        if not sample.images:
            continue
        try:
            pictures = [decode(image) for image in sample.images]
        except BadImage:  # it was not scored either
            continue
        scorer.between()
        said = generate(scorer, sample, pictures, together)
        blank = generate(scorer, sample, [blank_like(picture) for picture in pictures], together)
        row = scores.get(sample.id, {})
        chosen = row.get("prediction") if sample.choices and row.get("score") is not None else None
        stem = hashlib.sha256(sample.id.encode()).hexdigest()[:12]
        for picture in pictures:
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
        files = {f"{PICTURES}/{stem}-{i}.png": picture for i, picture in enumerate(pictures)}
        line = {
            "id": sample.id,
            "kind": sample.kind,
            "question": sample.question,
            "expected": sample.answer,
            "prediction": said,
            "prediction_blank": blank,
            "choice": chosen if chosen != said else None,
            "images": list(files),
            "correct": bool(row["score"]) if row.get("score") is not None else said == sample.answer,
        }
        shown.append(Shown(files, line))
    return shown


def write_gallery(folder: Path, gallery: Sequence[Shown]) -> None:
    """Writes gallery.jsonl and gallery/*.png."""
    (folder / PICTURES).mkdir(exist_ok=True)
    for one in gallery:
        for name, picture in one.pictures.items():
            picture.save(folder / name)
    lines = "".join(json.dumps(one.line, ensure_ascii=False) + "\n" for one in gallery)
    (folder / GALLERY).write_text(lines)


@torch.no_grad()
def generate(scorer: Scorer, sample: Sample, pictures: Sequence[Picture], together: bool) -> str:
    """The greedy answer to a sample's last question about ``pictures``."""
    renderer = scorer.renderer
    images = [scorer.viewer(picture) for picture in pictures]
    encoded = renderer.prompt(sample, [image.markup for image in images])
    pixels = [view for image in images for view in image.pixels]
    with autocast(scorer.device, scorer.precision):
        ids = scorer.model.generate(
            torch.from_numpy(encoded.ids)[None].to(scorer.device),
            to_device(stack_views(pixels), scorer.device),
            images=ImageInputs(tuple(image.layout for image in images)),
            samples=SampleInputs(prompts=(sample.asked,)),
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            pad_token_id=renderer.tokens.pad,
            eos_token_id=list(renderer.tokens.eos),
            synced_gpus=together,  # ranks whose arithmetic differs may end at different tokens
        )
    return renderer.decode(ids[0].tolist())
