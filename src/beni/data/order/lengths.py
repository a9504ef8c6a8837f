"""From the index to what each sample costs *this* run: positions of the llm, pictures, pixels of the encoder.

The index counts text; how many positions an image takes follows from its size and the run's visual path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from beni.data.order.index import FEW_BAD, Columns, Index
from beni.errors import ConfigError, DataError
from beni.nn.streams import numpy_stream
from beni.types import ImageLayout, Markup


@dataclass(frozen=True)
class Loads:
    """One row a sample.

    Attributes:
        tokens: positions, visual ones included.
        labels: supervised ones among them.
        images: pictures.
        pixels: of all views of its pictures.
    """

    tokens: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    pixels: np.ndarray


class Planner(Protocol):
    """What lengths need of a model; handed over by run.py."""

    def seen(self, size: tuple[int, int]) -> Sequence[ImageLayout]:
        """The layouts at which training sees a picture of (height, width), one after another; the longest of those it
        draws from.
        """
        ...

    def markup(self, layout: ImageLayout) -> Markup:
        """What stands in the text for an image."""
        ...


@dataclass(frozen=True)
class RunLengths:
    """Loads of a run.

    Attributes:
        template: the ``template`` section.
        tokens_per_image: positions that the schedule reckons with for an image instead of its own, so that runs with
            other visual paths get the same packs; None for its own.
        max_bad: share of samples, too long or otherwise bad, that is put up with: others stand in for them; None puts
            up with none.
    """

    index: Index
    planner: Planner
    template: Mapping[str, Any]
    tokens_per_image: int | None = None
    max_bad: float | None = None

    def loads(self, epoch: int) -> Loads:
        """What each sample of an epoch costs.

        Raises:
            DataError: when a sample is longer than ``template.max_length`` and may not be cut.
            ConfigError: when an image takes more positions than ``schedule.tokens_per_image``.
        """
        columns = self.index.columns(epoch)
        seen, visual, pixels = self._images(columns)
        times = np.where(columns.images > 0, seen, 1)
        tokens = columns.text * times + visual
        limit = self.template["max_length"] * times
        longer = tokens > limit
        if self.template["overlong"] == "truncate":
            longer = np.zeros_like(longer)
        bad = longer | (columns.bad > 0)
        if longer.any() and not self._bears(int(bad.sum()), len(bad)):
            first = int(longer.argmax())
            raise DataError(
                f"training sample {first} has {int(tokens[first])} tokens, template.max_length is "
                f"{self.template['max_length']}, and {int(longer.sum())} of {len(tokens)} are longer\n"
                f"  fix: set template.max_length={int(tokens.max())}, use fewer visual tokens, set "
                "template.overlong=truncate, or "
                + ("set records.on_bad=skip" if self.max_bad is None else f"raise records.max_bad={self.max_bad}")
            )
        if self.tokens_per_image is not None:
            tokens = columns.text * times + columns.images * self.tokens_per_image
        loads = Loads(np.minimum(tokens, limit), columns.labels * times, columns.images, pixels)
        return self._stood_in(loads, bad) if bad.any() else loads

    def _bears(self, bad: int, of: int) -> bool:
        """Whether so many bad samples are put up with."""
        return self.max_bad is not None and bad <= max(FEW_BAD, self.max_bad * of) and bad < of

    def _stood_in(self, loads: Loads, bad: np.ndarray) -> Loads:
        """Loads in which a bad sample costs what a good one of its source does, so that this one may stand in for it.

        Raises:
            DataError: when a source has none.
        """
        values = {name: getattr(loads, name).copy() for name in ("tokens", "labels", "images", "pixels")}
        for index in np.flatnonzero(bad).tolist():
            group = self.index.source.siblings(index)
            good = group.start + np.flatnonzero(~bad[group.start : group.stop])
            if not len(good):
                raise DataError(
                    f"training sample {index} cannot be used, nor can any other sample of its source\n"
                    "  fix: correct the records"
                )
            chosen = good[numpy_stream(0, "records.bad", index).integers(len(good))]
            for column in values.values():
                column[index] = column[chosen]
        return Loads(**values)

    def _images(self, columns: Columns) -> tuple[int, np.ndarray, np.ndarray]:
        """How often a sample with pictures is seen, and positions and pixels of all its pictures together."""
        sizes = columns.sizes if self.index.sized else np.zeros((1, 2), dtype=np.int64)
        unique, which = np.unique(sizes, axis=0, return_inverse=True)
        costs = np.array([self._cost((int(h), int(w))) for h, w in unique], dtype=np.int64).reshape(-1, 3)
        times = int(costs[:, 2].max(initial=1))
        if not self.index.sized:
            return times, columns.images * costs[0, 0], columns.images * costs[0, 1]
        sums = np.concatenate([np.zeros((1, 2), dtype=np.int64), costs[which.ravel(), :2].cumsum(0)])
        both = sums[columns.starts[1:]] - sums[columns.starts[:-1]]
        return times, both[:, 0], both[:, 1]

    def _cost(self, size: tuple[int, int]) -> tuple[int, int, int]:
        layouts = self.planner.seen(size)
        each = [sum(self._length(part) for part in self.planner.markup(layout)) for layout in layouts]
        most = self.tokens_per_image
        if most is not None and sum(each) > most:
            raise ConfigError(
                f"schedule.tokens_per_image={most}, but an image of {size[0]}x{size[1]} pixels takes {sum(each)} "
                f"positions in this run\n  fix: set schedule.tokens_per_image={sum(each)} or more, the same in all arms"
            )
        pixels = sum(height * width for layout in layouts for height, width in layout.views)
        return sum(each), pixels, len(layouts)

    def _length(self, part: int | str) -> int:
        return part if isinstance(part, int) else self.index.renderer.text_length(part)
