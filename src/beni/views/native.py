"""Native resolution: every picture at its own shape, in as many patches as a budget allows (NaFlex, arXiv 2502.14786).

References: ``transformers`` ``Siglip2ImageProcessor`` (``fill=true``: the picture is scaled, up too, until one more
patch would exceed the budget) and the ``smart_resize`` of Qwen2-VL (arXiv 2409.12191; ``fill=false``: its own size,
unless that is above ``max_patches`` or below ``min_patches``). Sides are rounded to whole patches, by squashing. Views
of different sizes are encoded size by size, so that no encoder and no stage behind it needs to know of padding;
encoders with learned positions interpolate them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import ConfigError
from beni.nn.pixels import PictureTransform
from beni.stage import StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE, Box, Views
from beni.views.lines import draw, lines_of, new_line, with_newlines
from beni.views.tiled import squashed

PRECISION = 1e-5  # of the scale, as the reference searches for it


class NativeView(Views):
    """``(i, n, d) -> (i, n, d)``, each row on a grid of its own, or with a token more for each row of it.

    Args:
        dim_out: width of the llm, at which newlines are learned.
        tile: (height, width) in pixels of the picture that the encoder wants; gives the size of a patch.
        patches: (rows, columns) of patches that the encoder makes of it.
        max_patches: most patches of a picture.
        min_patches: fewest, without ``fill``.
        fill: scale each picture to the budget.
        multiple: patches that divide each side; more than 1 for a resampler that merges that many.
        newline: end each row of the grid with a learned vector.

    Raises:
        ConfigError: when no multiple fits into the budget.
    """

    def __init__(
        self,
        dim_out: int,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        max_patches: Annotated[int, AtLeast(1)],
        min_patches: Annotated[int, AtLeast(1)],
        fill: bool,
        multiple: Annotated[int, AtLeast(1)],
        newline: bool,
    ) -> None:
        super().__init__()
        if not (1 <= multiple**2 <= max_patches and 1 <= min_patches <= max_patches):
            raise ConfigError(
                f"views.multiple={multiple}, views.min_patches={min_patches}, views.max_patches={max_patches}: "
                f"expected 1 or more patches, and no more than max_patches in multiple x multiple\n"
                f"  fix: set views.max_patches={max(multiple**2, min_patches, 256)} or more"
            )
        self.unit = (tile[0] // patches[0] * multiple, tile[1] // patches[1] * multiple)
        self.newline = new_line(dim_out, newline)
        self.most, self.least, self.fill = max_patches // multiple**2, max(1, min_patches // multiple**2), fill

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self._filled(size) if self.fill else self._smart(size),))

    def extremes(self) -> list[ImageLayout]:
        tall, wide = self.unit
        shapes = ((1, 1), (1, self.most), (self.most, 1), (2, 3), (3, 2))
        views = [(rows * tall, columns * wide) for rows, columns in shapes if rows * columns <= self.most]
        return [ImageLayout(view, (view,)) for view in views] + [self.plan((768, 1024))]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        (size,) = layout.views
        return [transform.at(size)(squashed(picture, size, Resampling.BILINEAR))]

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return list(views)

    def places(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE]

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (lines_of(rows[0], self.newline, "views=native"),)

    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return self.markup(layout, rows)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def finished(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, sources=())  # which rows on grids of several shapes lose

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return with_newlines(tokens, self.newline)

    def init_weights(self) -> None:
        draw(self.newline)

    def _filled(self, size: tuple[int, int]) -> tuple[int, int]:
        low, high = PRECISION / 10, 100.0
        while high - low >= PRECISION:
            scale = (low + high) / 2
            rows, columns = self._units(size, scale)
            low, high = (scale, high) if rows * columns <= self.most else (low, scale)
        rows, columns = self._units(size, low)
        return rows * self.unit[0], columns * self.unit[1]

    def _units(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / unit)) for side, unit in zip(size, self.unit, strict=True))
        return rows, columns

    def _smart(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        (tall, wide), area = self.unit, self.unit[0] * self.unit[1]
        rows, columns = max(1, round(height / tall)), max(1, round(width / wide))
        if rows * columns > self.most:
            shrink = math.sqrt(height * width / (self.most * area))
            rows, columns = max(1, int(height / shrink / tall)), max(1, int(width / shrink / wide))
            rows, columns = min(rows, self.most), min(columns, self.most)
        elif rows * columns < self.least:
            grow = math.sqrt(self.least * area / (height * width))
            rows, columns = math.ceil(height * grow / tall), math.ceil(width * grow / wide)
        return rows * tall, columns * wide
