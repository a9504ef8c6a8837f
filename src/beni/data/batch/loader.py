"""The loader: steps of the schedule to micro-batches of this rank, drawn ahead by worker processes.

A step's number is all a worker needs, so the loader is a plain map-style ``DataLoader`` over step numbers, and resuming
means starting at another number.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch.utils.data import DataLoader, Dataset, get_worker_info

from beni.data.batch.collate import Item, collate
from beni.data.batch.usable import Drawer, Fault, OnBad, OnBadRecord, train_if_good
from beni.data.fetch.ahead import LookAhead
from beni.data.order.schedule import Schedule
from beni.data.render.template import Renderer
from beni.data.sample import Bind, Sample, at_hand
from beni.data.source import Source
from beni.errors import BeniError, DataError
from beni.nn.streams import numpy_stream
from beni.types import Batch, ViewedImage

PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that sets the signal which a process gets when its parent dies."""


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
    """Optimizer step -> this rank's micro-batches. Pure: equal arguments give equal batches.

    Attributes:
        on_bad: what becomes of a sample whose picture is bad.
        on_bad_record: what becomes of one that cannot be read or encoded.
        look_ahead: told of the steps as they are drawn; None where no picture comes from a network.
        bind: how pictures of the source can be opened.
    """

    source: Source
    renderer: Renderer
    viewer: Viewer
    schedule: Schedule
    accumulation: int
    layout: str
    rank: int = 0
    world: int = 1
    pixel_keys: bool = False
    on_bad: OnBad = "replace"
    on_bad_record: OnBadRecord = "fail"
    look_ahead: LookAhead | None = None
    bind: Bind = at_hand

    def __post_init__(self) -> None:
        """Finds a step that cannot be divided here rather than in a worker."""
        self.schedule.require(self.world, self.accumulation)

    def __getitem__(self, step: int) -> list[Batch]:
        parts = self.schedule.parts(step, self.world, self.accumulation)[self.rank]
        if self.look_ahead is not None:
            worker = get_worker_info()
            self.look_ahead.at(step, 1 if worker is None else worker.num_workers, self._urls)
        order = int.from_bytes(self.schedule.step_hash(step)[:7], "big")
        batches = [self.batch(part, order) for part in parts]
        if self.look_ahead is not None and self.look_ahead.fetcher.notices:
            batches[0].notices = tuple(self.look_ahead.fetcher.notices)
            self.look_ahead.fetcher.notices.clear()
        return batches

    def batch(self, samples: Sequence[tuple[int, int]], order: int = 0) -> Batch:
        """(epoch, index) of samples -> one micro-batch."""
        items, faults = [], []
        for epoch, index in samples:
            drawn, found = self.items(epoch, index)
            items += drawn
            faults += found
        return collate(items, self.layout, self.renderer.tokens.pad, self.pixel_keys, faults, order)

    def items(self, epoch: int, index: int) -> tuple[list[Item], tuple[Fault, ...]]:
        """The sample as it is seen: once, or once at each scale of its images."""
        make = partial(self._made, epoch, index)
        drawer = Drawer(self.source, self.schedule, self.on_bad, self.bind, self.on_bad_record, make)
        drawn = drawer.draw(epoch, index)
        if self.schedule.settings["unit"] != "pack":
            return drawn.made, drawn.faults
        planned = int(self.schedule.loads(epoch).tokens[index])
        if _positions(drawn.made) > planned and drawn.pictures:  # a crop of another shape may take more views
            drawn = replace(drawer, plain=True).draw(epoch, index)
        if (length := _positions(drawn.made)) > planned:
            raise DataError(
                f"{drawn.sample} has {length} positions, and its pack was made for {planned}: its images have changed "
                "since they were measured\n  fix: rerun the same command (with checkpoint.resume=changed_data if the "
                "run has checkpoints); changed images are measured again"
            )
        return drawn.made, drawn.faults

    def _made(self, epoch: int, index: int, sample: Sample, pictures: list[Picture]) -> list[Item]:
        scales = self.viewer.scales(numpy_stream(self.schedule.seed, "scale", epoch, index)) if pictures else (0,)
        seen = [[self.viewer(picture, scale) for picture in pictures] for scale in scales]
        return [item(sample, self.renderer, images) for images in seen]

    def _urls(self, step: int) -> list[str]:
        """Addresses of the pictures that this rank's samples of a step have yet to be given."""
        parts = self.schedule.parts(step, self.world, self.accumulation)[self.rank]
        samples = [train_if_good(self.source, index, epoch) for part in parts for epoch, index in part]
        return [image.url for sample in samples if sample for image in sample.images if image.url is not None]


def _positions(items: Sequence[Item]) -> int:
    return sum(len(one.encoded.ids) for one in items)


def first_pictures(steps: Steps, samples: int = 8) -> Batch:
    """A few of the first samples of a run that have a picture, whatever rank asks; the very first where none has."""
    first = [(epoch, int(index)) for step in range(4) for epoch, unit in steps.schedule.step(step) for index in unit]
    drawn = ((e, i, train_if_good(steps.source, i, e)) for e, i in first)
    pictured = list(islice(((e, i) for e, i, sample in drawn if sample and sample.images), samples))
    return steps.batch(pictured or first[:samples])


def item(sample: Sample, renderer: Renderer, images: list[ViewedImage]) -> Item:
    """A sample whose images have been viewed, encoded for training or scoring."""
    encoded = renderer.encode(sample, [image.markup for image in images])
    return Item(sample.id, encoded, images, sample.source, sample.asked)


@dataclass(frozen=True)
class _Guarded(Dataset[list[Batch] | BeniError]):
    """The steps; an error for a person comes back as a value, since ``DataLoader`` would wrap it in a traceback."""

    steps: Steps

    def __getitem__(self, step: int) -> list[Batch] | BeniError:
        try:
            return self.steps[step]
        except BeniError as error:
            return error


def load(steps: Steps, first: int, last: int, workers: int, pin: bool) -> Generator[list[Batch], None, None]:
    """Micro-batches of the steps ``first`` to ``last`` - 1, in order. Closing it ends its processes.

    Raises:
        BeniError: whatever drawing a step raises, where the step would come.
    """
    loader = DataLoader(
        _Guarded(steps),
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
        worker_init_fn=_outlive_signals if workers else None,
        generator=torch.Generator(),  # else every start would draw from torch's global generator
    )
    others = multiprocessing.active_children()
    drawing = iter(loader)
    mine = [process for process in multiprocessing.active_children() if process not in others]
    try:
        for drawn in drawing:
            if isinstance(drawn, BeniError):
                raise drawn
            yield drawn
    finally:
        del drawing  # asks its processes to end, and waits a few seconds for each
        for process in mine:
            process.kill()  # one that hangs would be waited for when Python ends, without end


def _outlive_signals(worker: int) -> None:
    """A signal to all processes of a job is for the one that trains, which needs its loaders to finish the step.

    They go when it does: it stops them; where it was killed, the kernel does (Linux), also those that hang.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
