"""The loader: steps of the schedule to micro-batches of this rank, drawn ahead by worker processes.

A step's number is all a worker needs, so the loader is a plain map-style ``DataLoader`` over step numbers, and resuming
means starting at another number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL.Image import Image as Picture
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from beni.data.collate import Item, collate
from beni.data.sample import Sample, Source
from beni.data.schedule import micro_batches, step_samples
from beni.data.template import Renderer
from beni.nn.streams import numpy_stream
from beni.types import Batch, ViewedImage


class Viewer(Protocol):
    """A decoded picture to its views; handed over by run.py."""

    def __call__(self, picture: Picture, scale: int = 0) -> ViewedImage:
        """At one of the nested numbers of visual tokens, where there are several."""
        ...

    def scales(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The scales at which a training sample is seen."""
        ...


@dataclass(frozen=True)
class Steps(Dataset[list[Batch]]):
    """Optimizer step -> this rank's micro-batches. Pure: equal arguments give equal batches."""

    source: Source
    renderer: Renderer
    viewer: Viewer
    seed: int
    batch_size: int
    accumulation: int
    layout: str
    rank: int = 0
    world: int = 1
    pixel_keys: bool = False

    def __post_init__(self) -> None:
        """Finds a step that cannot be divided here rather than in a worker."""
        micro_batches(self.seed, 0, len(self.source), self.batch_size, self.world, self.accumulation)

    def __getitem__(self, step: int) -> list[Batch]:
        parts = micro_batches(self.seed, step, len(self.source), self.batch_size, self.world, self.accumulation)
        pad, keys = self.renderer.tokens.pad, self.pixel_keys
        return [
            collate([one for epoch, index in part for one in self._items(epoch, index)], self.layout, pad, keys)
            for part in parts[self.rank]
        ]

    def _items(self, epoch: int, index: int) -> Iterator[Item]:
        """The sample as it is seen: once, or once at each scale of its images."""
        sample = self.source.train(index, epoch)
        rng = numpy_stream(self.seed, "augment", epoch, index)
        pictures = [self.source.augment(image, rng) for image in sample.images]
        scales = self.viewer.scales(numpy_stream(self.seed, "scale", epoch, index)) if pictures else (0,)
        for scale in scales:
            yield item(sample, self.renderer, [self.viewer(picture, scale) for picture in pictures])


def first_pictures(steps: Steps, samples: int = 8) -> Batch:
    """A few of the first samples of a run that have a picture, whatever rank asks; the very first where none has."""
    few = replace(steps, rank=0, world=1, accumulation=max(1, steps.batch_size // samples))
    batches = [batch for step in range(4) for batch in few[step]]
    return next((batch for batch in batches if batch.pixels is not None), batches[0])


def item(sample: Sample, renderer: Renderer, images: list[ViewedImage]) -> Item:
    """A sample whose images have been viewed, encoded for training or scoring."""
    return Item(sample.id, renderer.encode(sample, [image.markup for image in images]), images)


def load(steps: Steps, first: int, last: int, workers: int, pin: bool) -> Iterator[list[Batch]]:
    """Micro-batches of the steps ``first`` to ``last`` - 1, in order."""
    return iter(
        DataLoader(
            steps,
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=pin,
            generator=Generator(),  # else every start would draw from torch's global generator
        )
    )


def order_hash(source: Source, seed: int, steps: int, batch_size: int) -> str:
    """Hash of the data order of a whole run: which sample of which epoch stands where."""
    digest = hashlib.sha256(source.fingerprint().encode())
    for step in range(steps):
        digest.update(repr(step_samples(seed, step, len(source), batch_size)).encode())
    return digest.hexdigest()[:16]
