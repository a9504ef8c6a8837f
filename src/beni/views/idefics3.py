"""Tiles of Idefics3 and SmolVLM (arXiv 2408.12637, 2504.05299): every tile announced by its row and column.

Reference: ``transformers`` ``Idefics3ImageProcessor`` and ``Idefics3Processor``. The longest side is scaled to
``longest`` tiles, both sides are then rounded up to whole tiles (squashing a little), and the whole picture, squashed
to one tile, comes last. The tags are text: an llm without tokens of their own spells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError, ConfigError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import WHOLE, Box, TiledViews, cut, squashed, tile_boxes, transformed

AROUND, GLOBAL = "<fake_token_around_image>", "<global-img>"


class Idefics3Tiles(TiledViews):
    """``(k, n, d) -> (i, ~, d)``: the tokens of the tiles in reading order, then those of the whole picture.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants, a square.
        longest: tiles along the longest side of a picture; 1 cuts nothing.
        join: let the resampler see all views of an image at once; there are no tags between them then.

    Raises:
        ConfigError: when ``longest`` is below 1.
        CompositionError: E-SQUARE when the encoder does not want squares.
    """

    def __init__(
        self, tokens: TokenSpec, tile: tuple[int, int], *, longest: Annotated[int, AtLeast(1)], join: bool
    ) -> None:
        if longest < 1:
            raise ConfigError(f"views.longest={longest}, expected at least 1 tile\n  fix: set views.longest=4")
        if tile[0] != tile[1]:
            raise CompositionError(
                "E-SQUARE",
                f"views=idefics3 cuts squares, the encoder wants {tile[0]}x{tile[1]} pixels",
                groups=("vision", "views"),
                fix="set vision.image_size to one side, or views=anyres",
            )
        super().__init__(tokens, longest * longest + 1, join)
        self.tile, self.longest = tile, longest

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        height, width = self._whole_tiles(size)
        tiles = (height // self.tile[0], width // self.tile[0])
        return ImageLayout(size, (self.tile,) * (1 if tiles == (1, 1) else tiles[0] * tiles[1] + 1), tiles)

    def extremes(self) -> list[ImageLayout]:
        side = self.tile[0]
        short = [self.plan((k * side, self.longest * side)) for k in range(1, self.longest + 1)]
        return short + [self.plan((self.longest * side, k * side)) for k in range(1, self.longest)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        scaled = squashed(picture, self._scaled(layout.size), Resampling.LANCZOS)
        whole = squashed(scaled, self._whole_tiles(layout.size), Resampling.LANCZOS)
        tiles = [] if layout.tiles == (1, 1) else list(cut(whole, self.tile))
        return transformed([*tiles, squashed(whole, self.tile, Resampling.LANCZOS)], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE] if layout.tiles == (1, 1) else [*tile_boxes(layout.tiles), WHOLE]

    def around(self) -> tuple[str, str]:
        return AROUND, AROUND

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        *tiles, whole = rows
        if not tiles:
            return (AROUND + GLOBAL, whole.n, AROUND)
        parts: list[int | str] = []
        across, before = layout.tiles[1], ""
        for i, tile in enumerate(tiles):
            row, column = divmod(i, across)
            parts += [f"{before}{AROUND}<row_{row + 1}_col_{column + 1}>", tile.n]
            before = "\n" if column + 1 == across else ""
        return (*parts, f"\n\n{AROUND}{GLOBAL}", whole.n, AROUND)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        return real_tokens(rows)

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) with the longest side at ``longest`` tiles, the other one even."""
        (height, width), longest = size, self.longest * self.tile[0]
        ratio = width / height  # as the reference computes it: its rounding decides
        if width >= height:
            short = int(longest / ratio)
            return max(1, short + short % 2), longest
        short = int(longest * ratio)
        return longest, max(1, short + short % 2)

    def _whole_tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) rounded up to whole tiles."""
        (height, width), side = self._scaled(size), self.tile[0]
        ratio = width / height
        if width >= height:
            width = -(-width // side) * side
            return max(1, -(-int(width / ratio) // side)) * side, width
        height = -(-height // side) * side
        return height, max(1, -(-int(height * ratio) // side)) * side
