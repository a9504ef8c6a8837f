"""One view: the whole picture at the encoder's size."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image as Picture
from torch import Tensor

from beni.stage import StageContext, TokenSpec
from beni.types import ImageLayout, Markup, VisualTokens
from beni.views.base import Views


class SingleView(Views):
    """``(i, n, d) -> (i, n, d)``."""

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size)

    def split(self, picture: Picture, layout: ImageLayout, transform: Callable[[Picture], Tensor]) -> list[Tensor]:
        return [transform(picture)]

    def rows(self, layout: ImageLayout) -> int:
        return 1

    def markup(self, layout: ImageLayout, tokens: TokenSpec) -> Markup:
        return (tokens.n,)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def flops(self, tokens: TokenSpec) -> int:
        return 0

    def init_weights(self) -> None:
        """Nothing to draw."""
