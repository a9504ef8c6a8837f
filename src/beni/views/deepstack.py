"""DeepStack's views (arXiv 2406.04334): the whole picture for the text, tiles of it for deeper layers of the llm.

A picture becomes one tile, and as many as a canvas has. After the connector the tokens of the tiles form one map again,
of which sets are sampled that are as many as the tokens of the whole picture: they come along with these
(``VisualTokens.deep``), and ``fusion=deepstack_views`` adds a set after each of some layers. ``2d`` takes every second
row and column of a 2x2 canvas, so that each set shows the whole picture and lies where the whole picture's tokens lie;
``1d`` every fourth token in reading order; ``grid`` a tile for a set.

Reference: ``process_plain_deepstack`` of https://github.com/MengLcool/DeepStack-VL. Deviations: pictures are squashed
to the canvas, as the whole one is to a tile; and all canvases have as many tiles, where there the sets that a smaller
one lacks are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError, ConfigError
from beni.nn.pixels import PictureTransform
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import WHOLE, Box, TiledViews, best_canvas, cut, squashed, tile_boxes, transformed

Sampling = Literal["2d", "1d", "grid"]


class DeepStackViews(TiledViews):
    """``(k, n, d) -> (i, n, d)``: the tokens of the whole picture, and beside each one token of each set.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        canvases: [rows, columns] in tiles of each canvas that a picture may be squashed to, all of as many tiles: the
            number of sets.
        sampling: how sets are taken from the map of the tiles.

    Raises:
        ConfigError: when ``canvases`` is empty, not of pairs, or of different numbers of tiles.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        *,
        canvases: list[list[Annotated[int, AtLeast(1)]]],
        sampling: Literal["2d", "1d", "grid"],
    ) -> None:
        pairs = all(len(canvas) == 2 and min(canvas) >= 1 for canvas in canvases)
        counts = {rows * columns for rows, columns in canvases} if pairs else set()
        if len(counts) != 1:
            raise ConfigError(
                f"views.canvases={canvases}, expected pairs of [rows, columns] with the same number of tiles\n"
                "  fix: set 'views.canvases=[[2,2],[1,4],[4,1]]'"
            )
        (sets,) = counts
        super().__init__(tokens, 1 + sets, join=False, sets=sets)
        self.tile = tile
        self.sampling: Sampling = sampling
        self.canvases = [(rows, columns) for rows, columns in canvases]

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        tiles = best_canvas(size, self.canvases, self.tile)
        return ImageLayout(size, (self.tile,) * self.most, tiles)

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self._pixels(canvas)) for canvas in self.canvases]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        large = squashed(picture, self._pixels(layout.tiles))
        return transformed([squashed(picture, self.tile), *cut(large, self.tile)], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE, *tile_boxes(layout.tiles)]

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        if any(row.grid is None for row in rows):
            raise CompositionError(
                "E-GRID",
                "views=deepstack samples the map of the tiles' tokens, and behind the connector they form no grid",
                groups=("views", "resampler"),
                fix="set selector=none, with resampler=none or one that keeps a grid, such as resampler=pixel_shuffle",
            )
        if any(row.gated for row in rows):
            raise CompositionError(
                "E-GATE",
                "views=deepstack adds tokens of tiles inside the llm, where their gates would say nothing",
                groups=("selector", "views"),
                fix="set selector=none, or views=internvl with fusion=hybrid, which reads gates of tiles",
            )
        return (rows[0].n,)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        if rows.grid is None:
            raise ValueError("sets were to be sampled of tokens without a grid")
        sets = sampled(rows.x[1:], layout.tiles, rows.grid, self.sampling)
        whole = rows.select(torch.tensor([0], device=rows.x.device))
        return replace(whole, deep=sets.transpose(0, 1).flatten(1)[None])

    def _pixels(self, canvas: tuple[int, int]) -> tuple[int, int]:
        return canvas[0] * self.tile[0], canvas[1] * self.tile[1]


def sampled(
    tiles: Float[Tensor, "k n d"], canvas: tuple[int, int], grid: tuple[int, int], sampling: Sampling
) -> Float[Tensor, "k n d"]:
    """Tiles to sets: each token of a tile is in one set, and each set has as many as a tile.

    Args:
        canvas: (rows, columns) of tiles.
        grid: (rows, columns) of tokens in a tile.
    """
    if sampling == "grid":
        return tiles
    cells = tiles.unflatten(1, grid).unflatten(0, canvas)  # (rows, columns, gh, gw, d)
    field = cells.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows * gh, columns * gw, d)
    if sampling == "1d":
        return field.flatten(0, 1).unflatten(0, (-1, len(tiles))).transpose(0, 1)
    steps = field.unflatten(1, (-1, canvas[1])).unflatten(0, (-1, canvas[0]))  # (gh, rows, gw, columns, d)
    return steps.permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
