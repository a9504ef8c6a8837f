"""Dynamic tiles of InternVL 1.5 (arXiv 2404.16821): as many tiles as the picture's shape asks for, then a thumbnail.

Reference: ``transformers`` ``GotOcr2ImageProcessor``, which InternVL uses. Of all arrangements of ``min_tiles`` to
``max_tiles`` tiles the one with the closest aspect ratio is taken, of equally close ones the largest that the picture
fills by more than half; the picture is squashed to it. The text has ``<img>`` and ``</img>`` around an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import ConfigError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import WHOLE, Box, TiledViews, cut, squashed, tile_boxes, transformed


class InternVlTiles(TiledViews):
    """``(k, n, d) -> (i, ~, d)``: the tokens of the tiles in reading order, then those of the thumbnail.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        min_tiles: fewest tiles, thumbnail not counted.
        max_tiles: most tiles.
        thumbnail: add the whole picture, squashed to one tile, where it was cut.
        start: text before an image; empty for none.
        end: text after it; empty for none.
        join: let the resampler see all views of an image at once.

    Raises:
        ConfigError: when there is no number from ``min_tiles`` to ``max_tiles``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        *,
        min_tiles: Annotated[int, AtLeast(1)],
        max_tiles: Annotated[int, AtLeast(1)],
        thumbnail: bool,
        start: str,
        end: str,
        join: bool,
    ) -> None:
        if not 1 <= min_tiles <= max_tiles:
            raise ConfigError(
                f"views.min_tiles={min_tiles} and views.max_tiles={max_tiles}, expected 1 or more, then as many or more"
                "\n  fix: set views.min_tiles=1"
            )
        super().__init__(tokens, max_tiles + (thumbnail and max_tiles > 1), join)
        self.tile, self.thumbnail, self.start, self.end = tile, thumbnail, start, end
        sides = range(1, max_tiles + 1)
        pairs = [(rows, columns) for columns in sides for rows in sides if min_tiles <= rows * columns <= max_tiles]
        self.arrangements = sorted(pairs, key=lambda pair: pair[0] * pair[1])

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        height, width = size
        best, closest = self.arrangements[0], None
        for rows, columns in self.arrangements:
            off = abs(Fraction(width, height) - Fraction(columns, rows))
            filled = 2 * height * width > self.tile[0] * self.tile[1] * rows * columns
            if closest is None or off < closest or (off == closest and filled):
                best, closest = (rows, columns), off
        count = best[0] * best[1]
        return ImageLayout(size, (self.tile,) * (count + (self.thumbnail and count > 1)), best)

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self._pixels(tiles)) for tiles in self.arrangements]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        tiles = list(cut(squashed(picture, self._pixels(layout.tiles)), self.tile))
        small = [squashed(picture, self.tile)] if len(layout.views) > len(tiles) else []
        return transformed([*tiles, *small], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        tiles = tile_boxes(layout.tiles)
        return [*tiles, WHOLE][: len(layout.views)]

    def around(self) -> tuple[str, str]:
        return self.start, self.end

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        parts = (self.start, sum(row.n for row in rows), self.end)
        return tuple(part for part in parts if part != "")

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        return real_tokens(rows)

    def _pixels(self, tiles: tuple[int, int]) -> tuple[int, int]:
        return tiles[0] * self.tile[0], tiles[1] * self.tile[1]
