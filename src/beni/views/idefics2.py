"""Views of Idefics2 (arXiv 2405.02246): the picture at its own size and shape, or its quarters and then itself.

Reference: ``transformers`` ``Idefics2ImageProcessor``. A view keeps its aspect ratio, its longest side at most
``longest`` pixels and its shortest at least ``shortest``. Deviations: sides are rounded to whole patches, by squashing,
where the reference drops or fills what is left over, depending on the batch; and views of different sizes are not
padded to one but encoded size by size, which every encoder can do that takes such sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import Box, TiledViews, squashed

AROUND = "<fake_token_around_image>"


class Idefics2Views(TiledViews):
    """``(k, n, d) -> (i, ~, d)``: upper left, upper right, lower left and lower right quarter, then the whole picture.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants; gives the size of a patch.
        patches: (rows, columns) of patches that the encoder makes of it.
        split: take the quarters too.
        shortest: least pixels of the shortest side of a view.
        longest: most pixels of the longest side of a view.
        multiple: patches that divide each side of a view; more than 1 for a resampler that merges that many.
        join: let the resampler see all views of an image at once.

    Raises:
        CompositionError: E-DIV when no multiple of patches fits between ``shortest`` and ``longest``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        split: bool,
        shortest: Annotated[int, AtLeast(1)],
        longest: Annotated[int, AtLeast(1)],
        multiple: Annotated[int, AtLeast(1)],
        join: bool,
    ) -> None:
        self.unit = (tile[0] // patches[0] * multiple, tile[1] // patches[1] * multiple)
        if multiple < 1 or not max(shortest, *self.unit) <= longest:
            raise CompositionError(
                "E-DIV",
                f"views.shortest={shortest}, views.longest={longest}, views.multiple={multiple}: a side of a view is a "
                f"multiple of {max(self.unit)} pixels between them",
                groups=("vision", "views"),
                fix=f"set views.longest={max(shortest, *self.unit, longest)} or more and views.multiple=1",
            )
        super().__init__(tokens, 5 if split else 1, join)
        self.quarters, self.shortest, self.longest = split, shortest, longest

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        pieces = [(bottom - top, right - left) for top, left, bottom, right in self._cuts(size)]
        return ImageLayout(size, tuple(self._scaled(piece) for piece in pieces), (2, 2) if self.quarters else (1, 1))

    def extremes(self) -> list[ImageLayout]:
        short, long = self.shortest, self.longest * (2 if self.quarters else 1)  # quarters of full length too
        return [self.plan(size) for size in ((short, short), (short, long), (long, short), (long, long))]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        cuts = self._cuts(layout.size)
        pieces = [picture.crop((left, top, right, bottom)) for top, left, bottom, right in cuts]
        return [
            transform.at(size)(squashed(piece, size, Resampling.BILINEAR))
            for piece, size in zip(pieces, layout.views, strict=True)
        ]

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        height, width = layout.size
        return [
            (top / height, left / width, bottom / height, right / width)
            for top, left, bottom, right in self._cuts(layout.size)
        ]

    def around(self) -> tuple[str, str]:
        return AROUND, AROUND

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (*(part for row in rows for part in (AROUND, row.n)), AROUND)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        return real_tokens(rows)

    def _cuts(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """(top, left, bottom, right) in pixels of each view; odd pixels go to the lower and right quarters."""
        height, width = size
        if not self.quarters:
            return [(0, 0, height, width)]
        # a picture of one pixel a side has no halves: both are the whole side
        (up, y), (before, x) = ((max(1, side // 2), side // 2) for side in size)
        quarters = [(0, 0, up, before), (0, x, up, width), (y, 0, height, before), (y, x, height, width)]
        return [*quarters, (0, 0, height, width)]

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a piece as a view."""
        height, width = size
        ratio = width / height
        if width >= height and width > self.longest:
            width, height = self.longest, int(self.longest / ratio)
        elif height > width and height > self.longest:
            height, width = self.longest, int(self.longest * ratio)
        sides = (max(height, self.shortest), max(width, self.shortest))
        tall, wide = (
            min(max(1, round(side / unit)), self.longest // unit) * unit
            for side, unit in zip(sides, self.unit, strict=True)
        )
        return tall, wide
