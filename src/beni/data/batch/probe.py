"""What samples of a run are like, found out from a few of them: enough to plan memory and costs before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from beni.data.images import size_if_any
from beni.data.render.template import Renderer
from beni.data.sample import Bind, at_hand
from beni.data.source import Source
from beni.errors import DataError
from beni.nn.streams import numpy_stream
from beni.types import IGNORE, ImageLayout, Markup

SAMPLES = 32
"""Drawn and encoded for a probe."""


class Planner(Protocol):
    """What a probe needs of a model; handed over by run.py."""

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """How a picture of (height, width) is cut; (0, 0) stands for a usual one."""
        ...

    def markup(self, layout: ImageLayout) -> Markup:
        """What stands in the text for an image."""
        ...


@dataclass(frozen=True)
class Probe:
    """Training samples, over a seeded draw of a few.

    Attributes:
        length: positions, visual ones included, mean.
        label_rows: supervised positions, mean.
        longest: positions of the longest.
        label_columns: positions at which any of them is supervised.
        image: layout of the image with the most views among them; of a usual picture where no sample has one.
        views: views, mean.
        remote: whether a picture of theirs has to be fetched.
    """

    length: int
    label_rows: int
    longest: int
    label_columns: int
    image: ImageLayout
    views: float
    remote: bool = False

    def laid_out(self, layout: str) -> tuple[int, int]:
        """Positions that a sample takes in a batch, and those of them whose logits are held."""
        return (self.longest, self.label_columns) if layout == "padded" else (self.length, self.label_rows)


def probe_samples(
    source: Source, renderer: Renderer, planner: Planner, bind: Bind = at_hand, skip_bad: bool = False
) -> Probe:
    """Encodes a few training samples.

    Args:
        bind: how pictures of the source can be opened.
        skip_bad: pass over those that cannot be encoded, unless none can.

    Raises:
        DataError: when one cannot be encoded.
    """
    chosen = numpy_stream(0, "plan.probe").choice(len(source), min(SAMPLES, len(source)), replace=False)
    samples, layouts, encoded = [], [], []
    for index in chosen.tolist():
        try:
            sample = bind(source.train(index, 0))
            layout = [planner.plan(size_if_any(image)) for image in sample.images]
            encoded.append(renderer.encode(sample, [planner.markup(one) for one in layout]))
        except DataError:
            if not skip_bad or (index == chosen[-1] and not encoded):
                raise
            continue
        samples.append(sample)
        layouts.append(layout)
    supervised = [np.flatnonzero(one.labels != IGNORE) for one in encoded]
    images = [one for layout in layouts for one in layout] or [planner.plan((0, 0))]
    return Probe(
        length=round(sum(len(one.ids) for one in encoded) / len(encoded)),
        label_rows=max(1, round(sum(len(columns) for columns in supervised) / len(encoded))),
        longest=max(len(one.ids) for one in encoded),
        label_columns=max(1, len(np.unique(np.concatenate(supervised)))),
        image=max(images, key=lambda one: len(one.views)),
        views=sum(len(one.views) for layout in layouts for one in layout) / len(samples),
        remote=any(image.url is not None for sample in samples for image in sample.images),
    )
