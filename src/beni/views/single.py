"""One view: the whole picture at the encoder's size."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image as Picture
from torch import Tensor

from beni.stage import StageContext, TokenSpec
from beni.types import VisualTokens
from beni.views.base import Views


class SingleView(Views):
    """``(i, n, d) -> (i, n, d)``."""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()

    def split(self, picture: Picture, transform: Callable[[Picture], Tensor]) -> list[Tensor]:
        return [transform(picture)]

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def flops(self, tokens: TokenSpec) -> int:
        return 0

    def init_weights(self) -> None:
        """Nothing to draw."""
