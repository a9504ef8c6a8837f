"""Looked at before the first step: held-out samples, all that are scored, and training samples as ``records`` says.

A sample that cannot be rendered would otherwise end a run when its turn comes, hours later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from beni.data.images import BadImage, Image, size_of
from beni.data.metric import Metric
from beni.data.order.index import FEW_BAD, SHOWN
from beni.data.render.template import Renderer
from beni.data.sample import Bind, Sample
from beni.data.source import Source
from beni.errors import DataError
from beni.nn.streams import numpy_stream
from beni.types import ImageLayout, Markup

SAMPLED = 1024
"""Training samples that ``records.check=sample`` looks at; fewer are all looked at."""


class Planner(Protocol):
    """What a check needs of a model; handed over by assemble.py."""

    @property
    def sized(self) -> bool:
        """Whether what becomes of a picture depends on its size."""
        ...

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """How a picture of (height, width) is cut; (0, 0) stands for a usual one."""
        ...

    def markup(self, layout: ImageLayout) -> Markup:
        """What stands in the text for an image."""
        ...


@dataclass(frozen=True)
class Check:
    """Looks at samples without decoding a picture.

    Attributes:
        bind: how pictures of the source can be opened.
        max_bad: share of bad records that is put up with; None puts up with none.
    """

    renderer: Renderer
    planner: Planner
    bind: Bind
    max_bad: float | None

    def heldout(self, samples: Sequence[Sample], places: Sequence[int], metric: Metric) -> dict[int, str]:
        """Why those of the samples at ``places`` that cannot be read cannot be, by their place.

        Raises:
            DataError: when one is bad and none is put up with, one would have to be cut, or none can be scored.
        """
        if not places:
            raise DataError("the data hold out no records, so nothing can be scored\n  fix: set data.heldout=1 or more")
        bad, unreadable = {}, ""
        readable = 0
        for place in places:
            try:
                sample = self.bind(samples[place])
                markups = [self.markup(image) for image in sample.images]
                texts = [sample.answered(text) for text in metric.candidates(sample)]
                encoded = [self.renderer.encode(text, markups, fit=False) for text in texts]
            except DataError as error:
                bad[place] = str(error)
                continue
            for text, one in zip(texts, encoded, strict=True):
                self.renderer.require_whole(text, one)
            missing = next((why for image in sample.images if (why := _unreadable(image))), "")
            readable += not missing
            unreadable = unreadable or missing
        self._require_few([*bad.values()], len(places), "held-out records")
        if not readable:
            raise DataError(
                f"no held-out sample has readable images: {unreadable}\n"
                "  fix: check data.path and data.images, or raise data.heldout"
            )
        return bad

    def training(self, source: Source) -> list[str]:
        """What is wrong with a seeded sample of the training records; empty where nothing is.

        Raises:
            DataError: when more are bad than is put up with.
        """
        count = min(SAMPLED, len(source))
        chosen = sorted(numpy_stream(0, "records.check").choice(len(source), count, replace=False).tolist())
        bad = list(self._faults(source, chosen))
        self._require_few(bad, count, "training records")
        return bad

    def markup(self, image: Image) -> Markup:
        """What stands for an image; where it has yet to be fetched, or cannot be read, for a usual one."""
        size = (0, 0)
        if self.planner.sized and image.url is None:
            try:
                size = size_of(image)
            except BadImage:
                size = (0, 0)
        return self.planner.markup(self.planner.plan(size))

    def _faults(self, source: Source, indices: Sequence[int]) -> Iterator[str]:
        for index in indices:
            try:
                sample = self.bind(source.train(index, 0))
                self.renderer.encode(sample, [self.markup(image) for image in sample.images])
            except DataError as error:
                yield str(error)

    def _require_few(self, bad: Sequence[str], of: int, what: str) -> None:
        if not bad or (self.max_bad is not None and len(bad) <= max(FEW_BAD, self.max_bad * of) and len(bad) < of):
            return
        more = f"\n... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        if self.max_bad is None:
            fix = "correct the records, or set records.on_bad=skip to train without them"
        else:
            fix = f"correct the records, or raise records.max_bad={self.max_bad}"
        raise DataError(
            f"{len(bad)} of {of} {what} cannot be used\n" + "\n".join(bad[:SHOWN]) + f"{more}\n  fix: {fix}"
        )


def _unreadable(image: Image) -> str:
    """Why a picture at hand cannot be opened; empty where it can be, or that cannot be known yet."""
    if image.url is not None or image.content is None:
        return ""
    try:
        size_of(image)
    except BadImage as error:
        return str(error)
    return ""
