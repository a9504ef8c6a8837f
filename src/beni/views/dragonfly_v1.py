"""Dragonfly, first version (arXiv 2406.00977v1): three sizes of the picture; of the largest only some tiles are kept.

Reference: branch ``dragonfly-v1`` of https://github.com/togethercomputer/Dragonfly. The picture becomes one tile, four
and 24. After the connector each tile is summed up by the mean of its tokens, and for each of the four middle tiles the
``top`` of the small ones in it win whose means have the largest dot product with its own; the prompt has no say, and no
gradient reaches the choice. Deviation: upstream lets six successive small tiles compete for each middle one, which
cover its place only in some shapes of the picture; here those do whose centre lies in it (upstream's way is
``regions=interval``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import ConfigError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.tiled import WHOLE, Box, TiledViews, best_canvas, cut, squashed, tile_boxes, transformed

MIDDLE = ((2, 2), (4, 1), (1, 4))
SMALL = ((4, 6), (6, 4), (8, 3), (3, 8), (12, 2), (2, 12))
FIRST_SMALL = 5  # after the whole picture and four middle tiles


class DragonflyV1(TiledViews):
    """``(29 i, n, d) -> (i, ~, d)``: the whole picture, the four middle tiles, then the small ones that won.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        top: small tiles kept for each middle one, at least 1.
        regions: which small tiles compete: ``spatial``, those whose centre lies in it, or ``interval``, every six in
            reading order.
        newline: text after each tile; empty for none.

    Raises:
        ConfigError: when ``top`` is below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        *,
        top: Annotated[int, AtLeast(1)],
        regions: Literal["spatial", "interval"],
        newline: str,
    ) -> None:
        if top < 1:
            raise ConfigError(f"views.top={top}, expected at least 1 tile\n  fix: set views.top=3")
        super().__init__(tokens, 29, join=False)
        self.tile, self.top, self.regions, self.line_end = tile, top, regions, newline

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile,) * 29, best_canvas(size, SMALL, self.tile))

    def extremes(self) -> list[ImageLayout]:
        tall, wide = self.tile
        return [self.plan((rows * tall, columns * wide)) for rows, columns in (*SMALL, *MIDDLE)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        tall, wide = self.tile
        shapes = [(rows * tall, columns * wide) for rows, columns in ((1, 1), self._middle(layout), layout.tiles)]
        return transformed([tile for shape in shapes for tile in cut(squashed(picture, shape), self.tile)], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE, *tile_boxes(self._middle(layout)), *tile_boxes(layout.tiles)]

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        winners = sum(min(self.top, len(region)) for region in self._regions(layout))
        parts = [part for row in (*rows[:FIRST_SMALL], *rows[-winners:]) for part in (row.n, self.line_end)]
        return tuple(part for part in parts if part != "")

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        real = rows.mask[..., None]
        means = (rows.x.detach() * real).sum(1) / real.sum(1)
        middle, small = means[1:FIRST_SMALL], means[FIRST_SMALL:]
        winners: list[int] = []
        for mean, region in zip(middle, self._regions(layout), strict=True):
            scores = small[region] @ mean
            best = scores.argsort(descending=True, stable=True)[: self.top]
            winners += [region[i] for i in best.tolist()]
        chosen = [*range(FIRST_SMALL), *(FIRST_SMALL + i for i in sorted(winners))]
        return real_tokens(rows.select(torch.tensor(chosen, device=rows.x.device)))

    def _middle(self, layout: ImageLayout) -> tuple[int, int]:
        return best_canvas(layout.size, MIDDLE, self.tile)

    def _regions(self, layout: ImageLayout) -> list[list[int]]:
        """For each middle tile the small ones that compete, by their number."""
        if self.regions == "interval":
            return [list(range(6 * i, 6 * i + 6)) for i in range(4)]
        centres = [((top + bottom) / 2, (left + right) / 2) for top, left, bottom, right in tile_boxes(layout.tiles)]
        return [
            [i for i, (y, x) in enumerate(centres) if top <= y < bottom and left <= x < right]
            for top, left, bottom, right in tile_boxes(self._middle(layout))
        ]
