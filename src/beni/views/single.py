"""One view: the whole picture at the encoder's size."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image as Picture
from torch import Tensor

from beni.nn.pixels import PictureTransform
from beni.stage import StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE, Box, Views
from beni.views.lines import draw, lines_of, new_line, with_newlines


class SingleView(Views):
    """``(i, n, d) -> (i, n, d)``, or with a token more for each row of the grid.

    Args:
        dim_out: width of the llm, at which newlines are learned.
        tile: (height, width) in pixels of the picture that the encoder wants.
        newline: end each row of the grid with a learned vector.
    """

    def __init__(self, dim_out: int, tile: tuple[int, int], *, newline: bool) -> None:
        super().__init__()
        self.tile = tile
        self.newline = new_line(dim_out, newline)

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile,))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.tile)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        return [transform(picture)]

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return list(views)

    def places(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE]

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (lines_of(rows[0], self.newline, "views=single"),)

    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return self.markup(layout, rows)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def finished(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return with_newlines(tokens, self.newline)

    def init_weights(self) -> None:
        draw(self.newline)
