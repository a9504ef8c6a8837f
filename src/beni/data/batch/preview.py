"""What the model sees, as plain values: the first steps of a run with their texts, label spans, crops and packs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from PIL.Image import Image as Picture
from torch import Tensor

from beni.data.batch.collate import Item, collate
from beni.data.batch.ledger import Counts
from beni.data.batch.loader import Steps
from beni.data.batch.usable import train_if_good
from beni.data.render.template import Renderer
from beni.types import IGNORE, Batch, ImageLayout

THUMBNAIL = 192
"""Longest side of a shown crop in pixels."""
BINS = 24
"""Bars of the histogram."""


class Stages(Protocol):
    """How many visual tokens there are behind each stage; handed over by the command."""

    def __call__(self, layout: ImageLayout) -> Mapping[str, int]:
        """Stage -> tokens of an image."""
        ...


@dataclass(frozen=True)
class Overlay:
    """What a trained model makes of a view, to be laid over it.

    Attributes:
        view: number of the view within its image.
        title: what it is.
        picture: transparent where nothing is told.
    """

    view: int
    title: str
    picture: Picture


class Draws(Protocol):
    """What a model makes of the images of a micro-batch; handed over by the command."""

    def __call__(self, batch: Batch) -> Sequence[Sequence[Overlay]]:
        """A micro-batch -> the overlays of each of its images."""
        ...


def without_weights(batch: Batch) -> Sequence[Sequence[Overlay]]:
    """Nothing can be drawn before there is a trained model."""
    return [()] * len(batch.layouts)


def preview(
    steps: Steps,
    numbers: Sequence[int],
    shown: Callable[[Float[Tensor, "3 height width"]], Picture],
    stages: Stages,
    draws: Draws = without_weights,
) -> dict[str, Any]:
    """The micro-batches of some optimizer steps, of the rank that ``steps`` is for.

    Args:
        shown: pixels -> the picture that an encoder sees.
        draws: what is laid over those pictures.

    Returns:
        ``steps``: a list of steps, each with its ``parts`` (micro-batches) of samples; ``counts``: the ledger of what
        is shown, by source; ``lengths``: of the samples shown, in order; ``faults``: bad pictures and what was done.
    """
    counts: dict[str, Counts] = {}
    faults: list[dict[str, Any]] = []
    lengths: list[int] = []
    out = []
    for step in numbers:
        parts = []
        for samples in steps.schedule.parts(step, steps.world, steps.accumulation)[steps.rank]:
            drawn = [steps.items(epoch, index) for epoch, index in samples]
            items = [item for some, _ in drawn for item in some]
            places = [place for place, (some, _) in zip(samples, drawn, strict=True) for _ in some]
            found = [fault for _, some in drawn for fault in some]
            batch = collate(items, steps.layout, steps.renderer.tokens.pad, faults=found)
            for name, of in batch.counts.items():
                counts[name] = counts.get(name, Counts()) + of
            faults += [{"step": step + 1, **fault.to_dict()} for fault in found]
            lengths += [len(item.encoded.ids) for item in items]
            row = batch.input_ids.shape[1]
            starts = np.cumsum([0, *(len(item.encoded.ids) for item in items)])
            drawn = iter(draws(batch))
            parts.append(
                {
                    "positions": row * batch.input_ids.shape[0],
                    "labels": batch.num_labels,
                    "images": len(batch.layouts),
                    "samples": [
                        _sample(item, steps, place, 0 if steps.layout == "padded" else int(start), shown, stages, drawn)
                        for item, place, start in zip(items, places, starts, strict=False)
                    ],
                }
            )
        out.append({"step": step + 1, "parts": parts})
    return {
        "steps": out,
        "counts": {name: asdict(of) for name, of in counts.items()},
        "lengths": lengths,
        "faults": faults,
    }


def histogram(lengths: Sequence[int] | np.ndarray) -> list[dict[str, int]]:
    """Numbers of samples by length: ``from`` (included), ``to`` (excluded) and ``count`` of each bar."""
    if len(lengths) == 0:
        return []
    low, high = int(np.min(lengths)), int(np.max(lengths)) + 1
    width = max(1, -(-(high - low) // BINS))
    edges = np.arange(low, high + width, width)
    numbers, _ = np.histogram(lengths, edges)
    return [{"from": int(a), "to": int(a) + width, "count": int(n)} for a, n in zip(edges[:-1], numbers, strict=True)]


def _sample(
    item: Item,
    steps: Steps,
    place: tuple[int, int],
    start: int,
    shown: Callable[[Float[Tensor, "3 height width"]], Picture],
    stages: Stages,
    drawn: Iterator[Sequence[Overlay]],
) -> dict[str, Any]:
    encoded = item.encoded
    labels = encoded.labels.copy()
    labels[0] = IGNORE  # as collate does
    original = train_if_good(steps.source, place[1], place[0])
    itself = original is not None and original.id == item.id
    return {
        "id": item.id,
        "where": original.where if original is not None and itself else "",
        "stands_in_for": None if itself else f"training sample {place[1]}" if original is None else original.id,
        "source": item.source,
        "epoch": place[0],
        "index": place[1],
        "start": start,
        "tokens": len(encoded.ids),
        "labels": int((labels != IGNORE).sum()),
        "truncated": encoded.truncated,
        "runs": list(runs(encoded.ids, labels, steps.renderer)),
        "images": [
            {
                "size": list(image.layout.size),
                "tiles": list(image.layout.tiles),
                "scale": image.layout.scale,
                "stages": dict(stages(image.layout)),
                "markup": [part if isinstance(part, int) else repr(part) for part in image.markup],
                "views": [
                    {"size": [int(view.shape[1]), int(view.shape[2])], "uri": _uri(shown(view))}
                    for view in image.pixels
                ],
                "drawings": [{"view": one.view, "title": one.title, "uri": _uri(one.picture)} for one in next(drawn)],
            }
            for image in item.images
        ],
    }


def runs(ids: np.ndarray, labels: np.ndarray, renderer: Renderer) -> Iterator[dict[str, Any]]:
    """Neighbouring tokens of one kind: ``image``, ``special``, ``text``; supervised (``trained``) or not.

    Each has its ``text``, its ``count`` of tokens and the position of the ``first``.
    """
    tokenizer = renderer.tokenizer
    special = set(tokenizer.added_tokens_decoder) | set(renderer.tokens.eos)

    def kind(place: int) -> tuple[str, bool]:
        token = int(ids[place])
        name = "image" if token == renderer.tokens.image else "special" if token in special else "text"
        return name, bool(labels[place] != IGNORE)

    for (name, trained), group in groupby(range(len(ids)), key=kind):
        places = list(group)
        text = "" if name == "image" else tokenizer.decode(ids[places].tolist(), clean_up_tokenization_spaces=False)
        yield {"kind": name, "trained": trained, "text": text, "count": len(places), "first": places[0]}


def _uri(picture: Picture) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
