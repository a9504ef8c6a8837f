"""Fewer pixels: the picture is encoded smaller, so that it has fewer tokens to begin with.

The baseline that a way of choosing tokens must beat: it saves the encoder's work as well, and published benchmarks
found it ahead of many of them (VTC-Bench, arXiv 2510.07143). The encoder must take pictures of another size, as those
do whose positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, grid_within
from beni.nn.pixels import PictureTransform
from beni.stage import StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE, Box, Views


class DownsampledView(Views):
    """``(i, n, d) -> (i, n, d)``, of pictures that have been made smaller before they were encoded.

    Args:
        tile: (height, width) in pixels of the picture that the encoder wants.
        patches: (rows, columns) of patches that the encoder makes of it.
        keep: most tokens: a whole number, or a share (a float, at most 1.0) of those of a whole picture; the grid is
            the largest within it that is shaped like the encoder's.
    """

    def __init__(
        self,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
    ) -> None:
        super().__init__()
        rows, columns = grid_within(patches, Budget(keep))
        self.size = (tile[0] // patches[0] * rows, tile[1] // patches[1] * columns)

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.size,))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.size)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        pixels = transform(picture)[None]  # cut or padded as the encoder has it, and then smaller
        return [F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False)[0]]

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return list(views)

    def places(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE]

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (rows[0].n,)

    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return self.markup(layout, rows)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def finished(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def init_weights(self) -> None:
        """Nothing to draw."""
