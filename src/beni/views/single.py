"""One view: the whole picture at the encoder's size."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image as Picture
from torch import Tensor

from beni.data.images import PictureTransform
from beni.stage import PassThrough, StageContext, TokenSpec
from beni.types import ImageLayout, Markup, VisualTokens
from beni.views.base import Views


class SingleView(PassThrough, Views):
    """``(i, n, d) -> (i, n, d)``.

    Args:
        tile: (height, width) in pixels of the picture that the encoder wants.
    """

    def __init__(self, tile: tuple[int, int]) -> None:
        super().__init__()
        self.tile = tile

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile,))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.tile)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        return [transform(picture)]

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return list(views)

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (rows[0].n,)

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens
