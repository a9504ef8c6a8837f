"""AnyRes of LLaVA-NeXT (blog post, January 2024): the whole picture at low resolution, then its tiles as one map.

Reference: ``transformers`` ``LlavaNextImageProcessor`` and ``LlavaNextModel.pack_image_features``. A picture is scaled
to fit the best of a few canvases, in tiles of the encoder's size, and centred on it; after the connector the tokens of
its tiles form one map again, from which the padded rows or columns are cut off, and each of whose rows ends with a
learned newline. Canvases are given in tiles instead of pixels, so they fit every encoder. Where the tokens of a tile
form no grid any more (behind a perceiver), a newline ends each row of tiles and nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from PIL import Image as PILImage
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import ConfigError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import constant, real_tokens, with_line_ends
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.types.visual import centres
from beni.views.lines import new_line
from beni.views.tiled import WHOLE, Box, TiledViews, best_canvas, cut, squashed, tile_boxes, transformed


class AnyRes(TiledViews):
    """``(k, n, d) -> (i, ~, d)``: base tokens, then the map of the tiles, each of its rows ended by a newline.

    Args:
        tokens: spec of the tokens of one view.
        dim_out: width of the llm, at which the newline is learned.
        tile: (height, width) in pixels of the picture that the encoder wants.
        canvases: [rows, columns] in tiles of each canvas that a picture may be laid on.
        unpad: cut off the tokens of padded rows and columns.
        newline: end each row with a learned vector.
        join: let the resampler see all views of an image at once; there are no newlines then.

    Raises:
        ConfigError: when ``canvases`` is empty or not of pairs.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        tile: tuple[int, int],
        *,
        canvases: list[list[Annotated[int, AtLeast(1)]]],
        unpad: bool,
        newline: bool,
        join: bool,
    ) -> None:
        if not canvases or any(len(canvas) != 2 or min(canvas) < 1 for canvas in canvases):
            raise ConfigError(
                f"views.canvases={canvases}, expected pairs of [rows, columns] in tiles\n"
                "  fix: set 'views.canvases=[[1,2],[2,1],[2,2]]'"
            )
        most = 1 + max(rows * columns for rows, columns in canvases)
        super().__init__(tokens, most, join, new_line(dim_out, newline and not join))
        self.tile, self.unpad = tile, unpad
        self.canvases = [(rows, columns) for rows, columns in canvases]

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        tiles = best_canvas(size, self.canvases, self.tile)
        return ImageLayout(size, (self.tile,) * (1 + tiles[0] * tiles[1]), tiles)

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self._pixels(canvas)) for canvas in self.canvases]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        canvas = self._pixels(layout.tiles)
        inner = fitted(layout.size, canvas)
        laid = PILImage.new("RGB", (canvas[1], canvas[0]))
        laid.paste(squashed(picture, inner), ((canvas[1] - inner[1]) // 2, (canvas[0] - inner[0]) // 2))
        return transformed([squashed(picture, self.tile), *cut(laid, self.tile)], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        canvas = self._pixels(layout.tiles)
        (tall, above), (wide, before) = (
            (whole / part, (whole - part) // 2 / part)
            for whole, part in zip(canvas, fitted(layout.size, canvas), strict=True)
        )
        tiles = [
            (top * tall - above, left * wide - before, bottom * tall - above, right * wide - before)
            for top, left, bottom, right in tile_boxes(layout.tiles)
        ]
        return [WHOLE, *tiles]

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        base, *tiles = rows
        lines = 0 if self.newline is None else 1
        if tiles[0].grid is None:
            return (base.n + sum(tile.n for tile in tiles) + lines * layout.tiles[0],)
        _, _, height, width = self._kept(layout, tiles[0].grid)
        return (base.n + height * (width + lines),)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        base, tiles = rows.select(torch.tensor([0])), rows.select(torch.arange(1, len(rows.x)))
        grid = rows.grid
        if grid is None:
            across = layout.tiles[1]
            lines = [real_tokens(tiles.select(torch.arange(i, i + across))) for i in range(0, len(tiles.x), across)]
            if self.newline is not None:
                end = constant(self.newline, lines[0])
                lines = [piece for line in lines for piece in (line, end)]
            return VisualTokens.cat([real_tokens(base), *lines])
        top, left, height, width = self._kept(layout, grid)

        def mapped(x: Tensor) -> Tensor:  # (tiles, gh * gw, ...) -> (height, width, ...)
            cells = x.unflatten(1, grid).unflatten(0, layout.tiles)  # (rows, columns, gh, gw, ...)
            return cells.transpose(1, 2).flatten(2, 3).flatten(0, 1)[top : top + height, left : left + width]

        flat = tiles.map(lambda tensor: mapped(tensor).flatten(0, 1)[None], (height, width))
        flat = replace(flat, yx=centres((height, width), flat.x.device))
        return VisualTokens.cat([base, flat if self.newline is None else with_line_ends(flat, self.newline)])

    def _pixels(self, canvas: tuple[int, int]) -> tuple[int, int]:
        return canvas[0] * self.tile[0], canvas[1] * self.tile[1]

    def _kept(self, layout: ImageLayout, grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part of the tiles' map that shows the picture."""
        rows, columns = layout.tiles[0] * grid[0], layout.tiles[1] * grid[1]
        height, width = layout.size
        if not self.unpad:
            return 0, 0, rows, columns
        if width / height > columns / rows:
            above = (rows - int(round(height * columns / width, 7))) // 2
            return above, 0, rows - 2 * above, columns
        before = (columns - int(round(width * rows / height, 7))) // 2
        return 0, before, rows, columns - 2 * before


def fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture of ``size``, scaled to touch the borders of a canvas; the short side rounded up."""
    (height, width), (rows, columns) = size, canvas
    if columns / width < rows / height:
        return min(-(-height * columns // width), rows), columns
    return rows, min(-(-width * rows // height), columns)
