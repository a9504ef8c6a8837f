"""A sample with all its pictures, or what stands in for it when one of them, or its record, is bad.

A picture that cannot be had (and, with ``records.on_bad=skip``, a record) never ends a run, changes no other sample and
never makes ranks disagree: what happens instead follows from (seed, epoch, index) and the verdict on it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
OnBadRecord = Literal["fail", "skip"]

ATTEMPTS = 16
"""Stand-ins tried for one sample."""
HOPELESS = 8
"""Stand-ins with bad pictures after which it is not the pictures that are wrong."""
CANDIDATES = 64
"""Samples drawn for each attempt; the longest that fits is taken."""


@dataclass(frozen=True)
class Fault:
    """A bad picture or record: a line of data_errors.jsonl, but for the step.

    Attributes:
        sample: id of the sample that wanted it; for a record that cannot be read its number.
        image: key of the picture; empty where it is the record that is bad.
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
    """What is trained on: a sample, its pictures decoded and varied, and what went wrong on the way.

    Attributes:
        made: what the drawer's ``make`` made of it.
    """

    sample: Sample
    pictures: list[Picture]
    faults: tuple[Fault, ...] = ()
    made: Any = None


def nothing(sample: Sample, pictures: list[Picture]) -> None:
    """Makes nothing of a sample and its pictures."""


def train_if_good(source: Source, index: int, epoch: int) -> Sample | None:
    """A training sample; None for one whose record is bad, whose fate is decided when it is its turn."""
    try:
        return source.train(index, epoch)
    except DataError:
        return None


@dataclass(frozen=True)
class Drawer:
    """(epoch, index) -> a sample whose pictures are all there.

    Attributes:
        bind: how pictures of the source can be opened.
        on_bad_record: what becomes of a sample that cannot be read, or that ``make`` refuses.
        make: called with a sample and its pictures, for instance to encode it; what it refuses with a ``DataError`` is
            a bad record.
        plain: leave random crops out, which change the sizes of pictures.
    """

    source: Source
    schedule: Schedule
    on_bad: OnBad
    bind: Bind = at_hand
    on_bad_record: OnBadRecord = "fail"
    make: Callable[[Sample, list[Picture]], Any] = nothing
    plain: bool = False

    def draw(self, epoch: int, index: int) -> DrawnSample:
        """Pure, but for whether a picture can be had.

        Raises:
            DataError: for a bad record under ``on_bad_record=fail``, with ``images.on_bad=fail``, or when stand-in
                after stand-in is no better. Where there is too short a sample for any to stand in, its bad pictures are
                left out.
        """
        faults: list[Fault] = []
        tried = 0
        for candidate in self._candidates(epoch, index):
            tried += 1
            try:
                sample = self.bind(self.source.train(candidate, epoch))
                pictures, bad = self._pictures(sample, epoch, candidate)
                made = None if bad else self.make(sample, pictures)
            except DataError as error:
                if self.on_bad_record == "fail":
                    raise
                faults.append(self._record_fault(epoch, candidate, error))
                continue
            if not bad:
                told = tuple(replace(fault, by=sample.id) for fault in faults)
                return DrawnSample(sample, pictures, told, made)
            reasons = {image.key: error.reason for image, error in bad}
            if self.on_bad == "fail":
                raise DataError(
                    f"{sample}: {bad[0][1]}\n  fix: set images.on_bad=replace or skip_image, or correct the data"
                )
            faults += [
                Fault(epoch, candidate, sample.id, sample.where, sample.source, key, reason, "replaced")
                for key, reason in reasons.items()
            ]
            if self.on_bad == "skip_image":
                break
        return self._without(epoch, index, faults, tried)

    def _record_fault(self, epoch: int, candidate: int, error: DataError) -> Fault:
        sample = train_if_good(self.source, candidate, epoch)
        name, where = (f"training sample {candidate}", "") if sample is None else (sample.id, sample.where)
        return Fault(epoch, candidate, name, where, self.source.name_of(candidate), "", str(error), "replaced")

    def _pictures(self, sample: Sample, epoch: int, index: int) -> tuple[list[Picture], list[tuple[Image, BadImage]]]:
        rng = numpy_stream(self.schedule.seed, "augment", epoch, index)
        augment = replace(sample.augment, crop=1.0, stretch=1.0) if self.plain else sample.augment
        pictures, bad = [], []
        for image in sample.images:
            try:
                pictures.append(augment(image, rng))
            except BadImage as error:
                bad.append((image, error))
        return pictures, bad

    def _without(self, epoch: int, index: int, faults: list[Fault], tried: int) -> DrawnSample:
        """The sample without its bad pictures.

        Raises:
            DataError: where so many stand-ins are bad that it is not they that are wrong, or its record is bad.
        """
        bad = {fault.image for fault in faults if fault.index == index}
        first = faults[0]
        if tried > HOPELESS or "" in bad:
            said = f"image {first.image}: {first.reason}" if first.image else first.reason
            raise DataError(
                f"{first.sample}{f' ({first.where})' if first.where else ''}: {said}\n"
                f"and {tried - 1} replacements drawn for it are bad as well\n"
                "  fix: check data.path, data.images, the network and the section images"
            )
        sample = self.bind(self.source.train(index, epoch))
        messages = tuple(
            replace(m, content=tuple(part for part in m.content if not (isinstance(part, Image) and part.key in bad)))
            for m in sample.messages
        )
        kept = replace(sample, messages=messages)
        pictures, _ = self._pictures(kept, epoch, index)
        told = tuple(replace(fault, action="skipped", by=sample.id) for fault in faults)
        return DrawnSample(kept, pictures, told, self.make(kept, pictures))

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
                & ((loads.images[drawn] > 0) == (loads.images[index] > 0))
                & (drawn != index)
            ]
            if len(fits):
                yield int(fits[np.argmax(loads.tokens[fits])])
