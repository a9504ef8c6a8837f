"""Dragonfly, second version (arXiv 2406.00977v2): three sizes of the picture, the tiles of the larger ones pooled.

Reference: https://github.com/togethercomputer/Dragonfly. The picture becomes one tile, four and 36. After the connector
the single one keeps all its tokens; of the others the CLS token stays (``vision.keep_cls=true``), and squares of
``pool`` x ``pool`` patches become their average. That equals pooling before the connector where it is linear, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.grid import from_map, to_map
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import WHOLE, Box, TiledViews, best_canvas, cut, squashed, tile_boxes, transformed

MIDDLE = ((2, 2), (4, 1), (1, 4))
FINER = 3  # tiles along a side of the largest size for each of the middle one


class DragonflyV2(TiledViews):
    """``(41 i, n, d) -> (i, ~, d)``: the whole picture, then four and 36 tiles, pooled.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        patches: (rows, columns) of patches that the encoder makes of it.
        pool: rows and columns of the squares that are pooled; divides both of ``patches``.
        newline: text after each tile; empty for none.
        join: let the resampler see all views of an image at once; nothing is pooled then.

    Raises:
        CompositionError: E-DIV when ``pool`` does not divide the patches.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        pool: Annotated[int, AtLeast(1)],
        newline: str,
        join: bool,
    ) -> None:
        rows, columns = patches
        if pool < 1 or rows % pool or columns % pool:
            legal = [str(k) for k in range(1, min(patches) + 1) if rows % k == columns % k == 0]
            raise CompositionError(
                "E-DIV",
                f"views.pool={pool} does not divide the {rows}x{columns} patches of a tile",
                groups=("vision", "views"),
                fix=f"set views.pool to one of {', '.join(legal)}",
            )
        super().__init__(tokens, 1 + 4 + 4 * FINER**2, join)
        self.tile, self.patches, self.pool, self.line_end = tile, patches, pool, newline

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        rows, columns = best_canvas(size, MIDDLE, self.tile)
        return ImageLayout(size, (self.tile,) * self.most, (FINER * rows, FINER * columns))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan((rows * self.tile[0], columns * self.tile[1])) for rows, columns in MIDDLE]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        tall, wide = self.tile
        shapes = [(rows * tall, columns * wide) for rows, columns in ((1, 1), self._middle(layout), layout.tiles)]
        return transformed([tile for shape in shapes for tile in cut(squashed(picture, shape), self.tile)], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE, *tile_boxes(self._middle(layout)), *tile_boxes(layout.tiles)]

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        n = self.patches[0] * self.patches[1]
        if rows[0].n not in (n, n + 1):
            raise CompositionError(
                "E-GRID",
                f"views=dragonfly_v2 pools the {n} patches of a tile behind the connector, {rows[0].n} tokens come",
                groups=("views", "resampler"),
                fix="set selector=none resampler=none, or views.join=true",
            )
        if any(not row.fixed for row in rows):
            raise CompositionError(
                "E-GRID",
                f"views=dragonfly_v2 pools the {n} patches of a tile behind the connector, a selector takes some out",
                groups=("views", "selector"),
                fix="set selector=none, or views.join=true with resampler=perceiver",
            )
        if any(row.gated for row in rows):
            raise CompositionError(
                "E-GATE",
                "views=dragonfly_v2 pools the patches of a tile behind the connector, and closed ones would come back",
                groups=("views", "selector"),
                fix="set selector=none, or views.join=true with resampler=perceiver, which reads gates",
            )
        pooled = n // self.pool**2 + rows[0].n - n
        sizes = [rows[0].n, *[pooled] * (len(rows) - 1)]
        return tuple(part for size in sizes for part in (size, self.line_end) if part != "")

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        whole, tiles = rows.select(torch.tensor([0])), rows.select(torch.arange(1, len(rows.x)))
        extra = rows.x.shape[1] - self.patches[0] * self.patches[1]

        def part(chosen: slice) -> VisualTokens:
            return tiles.map(lambda tensor: tensor[:, chosen])

        patches = replace(part(slice(extra, None)), grid=self.patches)
        pooled = from_map(F.avg_pool2d(to_map(patches), self.pool), patches)
        places = F.avg_pool2d(patches.yx.transpose(1, 2).unflatten(2, self.patches), self.pool)
        pooled = replace(pooled, yx=places.flatten(2).transpose(1, 2))
        return VisualTokens.cat([real_tokens(whole), real_tokens(VisualTokens.cat([part(slice(extra)), pooled]))])

    def _middle(self, layout: ImageLayout) -> tuple[int, int]:
        return layout.tiles[0] // FINER, layout.tiles[1] // FINER
