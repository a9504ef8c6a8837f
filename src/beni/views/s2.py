"""S2, scaling on scales (arXiv 2403.13043): one encoder on several sizes of the picture, their features side by side.

Reference: ``s2wrapper`` (https://github.com/bfshi/scaling_on_scales). A larger size is cut into tiles that the encoder
can take, the features of the tiles are put together again and brought to the grid of one tile by averaging areas. The
number of tokens stays, their width grows by the number of sizes. Deviations: each size is resampled from the picture
itself, with Pillow's antialiasing, not from the encoder's input; features are averaged in fp32, as there, but stay in
their own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError, ConfigError
from beni.nn.grid import grid_of, regrid, to_map
from beni.nn.pixels import PictureTransform
from beni.stage import StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE, Box, Views
from beni.views.tiled import cut, squashed, transformed


class S2Views(Views):
    """``(i * k, n, d) -> (i, n, d * sizes)``, k = sum of the squares of the scales.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        scales: sizes of the picture as multiples of it, whole numbers.

    Raises:
        ConfigError: when a scale is below 1, or there is none.
        CompositionError: E-GRID when the tokens of a view form no grid; E-LEVELS and E-STACK when they carry features
            of other layers, or of several encoders, which have no place here.
    """

    def __init__(self, tokens: TokenSpec, tile: tuple[int, int], *, scales: list[Annotated[int, AtLeast(1)]]) -> None:
        super().__init__()
        if not scales or min(scales) < 1:
            raise ConfigError(
                f"views.scales={scales}, expected whole numbers of at least 1\n  fix: set 'views.scales=[1,2]'"
            )
        for code, wrong, fix in (
            ("E-GRID", tokens.grid is None, "vision.keep_cls=false"),
            ("E-LEVELS", tokens.levels > 0, "'vision.levels=[]'"),
            ("E-STACK", len(tokens.sources) > 0, "vision.combine=channels"),
        ):
            if wrong:
                raise CompositionError(
                    code,
                    "views=s2 puts features of several sizes together cell by cell: it needs one dense grid of them",
                    groups=("vision", "views"),
                    fix=f"set {fix}",
                )
        self.tile, self.scales = tile, scales

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile,) * sum(scale**2 for scale in self.scales))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.tile)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        sizes = [(scale * self.tile[0], scale * self.tile[1]) for scale in self.scales]
        return transformed([tile for size in sizes for tile in cut(squashed(picture, size), self.tile)], transform)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return regrid(tokens, grid_of(tokens, "views=s2"), tokens.dim * len(self.scales))

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return [self.spec(views[0])]

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if tokens.grid is None:
            raise ValueError("s2 was given tokens without a grid")
        rows, columns = tokens.grid
        maps = to_map(tokens).unflatten(0, (-1, sum(scale**2 for scale in self.scales)))  # (i, k, d, rows, columns)
        made, start = [], 0
        for scale in self.scales:
            tiles = maps[:, start : start + scale**2].unflatten(1, (scale, scale))
            start += scale**2
            whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(maps), -1, scale * rows, scale * columns)
            wide = whole if whole.dtype == torch.float64 else whole.float()
            made.append(F.interpolate(wide, (rows, columns), mode="area").to(whole.dtype))
        return VisualTokens.dense(torch.cat(made, 1).flatten(2).transpose(1, 2), tokens.grid)

    def places(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE]

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (rows[0].n,)

    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return self.markup(layout, rows)

    def finished(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def init_weights(self) -> None:
        """Nothing to draw."""
