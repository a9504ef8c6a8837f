"""A sample with all its pictures, or what stands in for it when one of them is bad.

A picture that cannot be had never ends a run, never changes another sample and never makes ranks disagree: what happens
instead follows from (seed, epoch, index) and the verdict on the picture alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL.Image import Image as Picture

from beni.data.images import BadImage, Image
from beni.data.order.schedule import Schedule
from beni.data.sample import Bind, Sample, at_hand
from beni.data.source import Source
from beni.errors import DataError
from beni.nn.streams import numpy_stream

OnBad = Literal["replace", "skip_image", "fail"]

ATTEMPTS = 16
"""Stand-ins tried for one sample."""
HOPELESS = 8
"""Stand-ins with bad pictures after which it is not the pictures that are wrong."""
CANDIDATES = 64
"""Samples drawn for each attempt; the longest that fits is taken."""


@dataclass(frozen=True)
class Fault:
    """A bad picture: a line of data_errors.jsonl, but for the step.

    Attributes:
        sample: id of the sample that wanted it.
        image: key of the picture.
        action: ``replaced`` or ``skipped``.
        by: id of the sample that stands in; the sample itself where its picture is left out.
    """

    epoch: int
    index: int
    sample: str
    where: str
    source: str
    image: str
    reason: str
    action: str
    by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fault as a line of data_errors.jsonl has it."""
        return asdict(self)


@dataclass(frozen=True)
class DrawnSample:
    """What is trained on: a sample, its pictures decoded and varied, and what went wrong on the way."""

    sample: Sample
    pictures: list[Picture]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Drawer:
    """(epoch, index) -> a sample whose pictures are all there.

    Attributes:
        bind: how pictures of the source can be opened.
    """

    source: Source
    schedule: Schedule
    on_bad: OnBad
    bind: Bind = at_hand

    def draw(self, epoch: int, index: int) -> DrawnSample:
        """Pure, but for whether a picture can be had.

        Raises:
            DataError: with ``images.on_bad=fail``, or when stand-in after stand-in is no better. Where there is too
                short a sample for any to stand in, its bad pictures are left out.
        """
        faults: list[Fault] = []
        tried = 0
        for candidate in self._candidates(epoch, index):
            sample = self.bind(self.source.train(candidate, epoch))
            pictures, bad = self._pictures(sample, epoch, candidate)
            if not bad:
                return DrawnSample(sample, pictures, tuple(replace(fault, by=sample.id) for fault in faults))
            reasons = {image.key: error.reason for image, error in bad}
            if self.on_bad == "fail":
                raise DataError(
                    f"{sample}: {bad[0][1]}\n  fix: set images.on_bad=replace or skip_image, or mend the data"
                )
            faults += [
                Fault(epoch, candidate, sample.id, sample.where, sample.source, key, reason, "replaced")
                for key, reason in reasons.items()
            ]
            tried += 1
            if self.on_bad == "skip_image":
                break
        wanted = self.bind(self.source.train(index, epoch))
        if tried > HOPELESS:
            raise DataError(
                f"{wanted}: image {faults[0].image}: {faults[0].reason}\n"
                f"and {tried - 1} samples drawn in its place have bad pictures as well\n"
                "  fix: see whether data.path, data.images, the network and the section images are right"
            )
        return self._without(wanted, epoch, index, faults)

    def _pictures(self, sample: Sample, epoch: int, index: int) -> tuple[list[Picture], list[tuple[Image, BadImage]]]:
        rng = numpy_stream(self.schedule.seed, "augment", epoch, index)
        pictures, bad = [], []
        for image in sample.images:
            try:
                pictures.append(sample.augment(image, rng))
            except BadImage as error:
                bad.append((image, error))
        return pictures, bad

    def _without(self, sample: Sample, epoch: int, index: int, faults: list[Fault]) -> DrawnSample:
        """The sample without its bad pictures."""
        bad = {fault.image for fault in faults if fault.index == index}
        messages = tuple(
            replace(m, content=tuple(part for part in m.content if not (isinstance(part, Image) and part.key in bad)))
            for m in sample.messages
        )
        kept = replace(sample, messages=messages)
        pictures, _ = self._pictures(kept, epoch, index)
        return DrawnSample(kept, pictures, tuple(replace(fault, action="skipped", by=sample.id) for fault in faults))

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The sample itself, then others of its source: with lengths none that is longer or has more pictures."""
        yield index
        group = self.source.siblings(index)
        for attempt in range(ATTEMPTS):
            rng = numpy_stream(self.schedule.seed, "data.replace", epoch, index, attempt)
            drawn = rng.integers(group.start, group.stop, CANDIDATES)
            if self.schedule.lengths is None:
                yield int(drawn[0])
                continue
            loads = self.schedule.loads(epoch)
            fits = drawn[
                (loads.tokens[drawn] <= loads.tokens[index])
                & (loads.images[drawn] <= loads.images[index])
                & (loads.images[drawn] > 0)
                & (drawn != index)
            ]
            if len(fits):
                yield int(fits[np.argmax(loads.tokens[fits])])
