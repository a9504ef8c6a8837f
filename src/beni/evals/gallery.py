"""A gallery for the report: held-out pictures with what the model answers, and what it answers when it sees nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from beni.data.collate import stack_views
from beni.data.images import BadImage, blank_like, decode
from beni.data.loader import Viewer
from beni.data.sample import Sample
from beni.data.template import Renderer
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast
from beni.types import to_device

LONGEST_ANSWER = 32


def write_gallery(
    folder: Path,
    model: BeniForConditionalGeneration,
    samples: Sequence[Sample],
    renderer: Renderer,
    viewer: Viewer,
    precision: str,
    rows: Sequence[dict[str, Any]],
) -> None:
    """Writes gallery.jsonl and gallery/*.png; answers are generated greedily, not teacher-forced.

    Args:
        rows: rows of scores.jsonl of these samples; where there is a score it decides right or wrong.
    """
    (folder / "gallery").mkdir(exist_ok=True)
    scores = {row["id"]: row for row in rows if row["variant"] == "true"}
    lines = []
    for sample in samples:
        if not sample.images:
            continue
        try:
            pictures = [decode(image) for image in sample.images]
        except BadImage:  # it was not scored either
            continue
        files = []
        for i, picture in enumerate(pictures):
            name = f"gallery/{hashlib.sha256(sample.id.encode()).hexdigest()[:12]}-{i}.png"
            picture.thumbnail((384, 384))
            picture.save(folder / name)
            files.append(name)
        answer = generate(model, sample, renderer, viewer, pictures, precision)
        row = scores.get(sample.id, {})
        chosen = row.get("prediction") if sample.choices and row.get("score") is not None else None
        lines.append(
            {
                "id": sample.id,
                "kind": sample.kind,
                "question": sample.question,
                "expected": sample.answer,
                "prediction": answer,
                "prediction_blank": generate(
                    model, sample, renderer, viewer, [blank_like(p) for p in pictures], precision
                ),
                "choice": chosen if chosen != answer else None,
                "images": files,
                "correct": bool(row["score"]) if row.get("score") is not None else answer == sample.answer,
            }
        )
    (folder / "gallery.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@torch.no_grad()
def generate(
    model: BeniForConditionalGeneration,
    sample: Sample,
    renderer: Renderer,
    viewer: Viewer,
    pictures: Sequence[Any],
    precision: str,
) -> str:
    """The greedy answer to a sample's last question about ``pictures``."""
    device = next(model.parameters()).device
    images = [viewer(picture) for picture in pictures]
    encoded = renderer.prompt(sample, [image.markup for image in images])
    pixels = [view for image in images for view in image.pixels]
    with autocast(device, precision):
        ids = model.generate(
            torch.from_numpy(encoded.ids)[None].to(device),
            to_device(stack_views(pixels), device),
            layouts=tuple(image.layout for image in images),
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            pad_token_id=renderer.tokens.pad,
            eos_token_id=list(renderer.tokens.eos),
        )
    return renderer.decode(ids[0].tolist())
