"""Inline fusion: visual tokens stand in the text where their image's placeholders are (LLaVA, arXiv 2304.08485)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from beni.errors import DataError
from beni.fusion.base import Fusion
from beni.stage import TokenSpec
from beni.types import VisualTokens


class InlineFusion(Fusion):
    """``(b, t, d)`` with the placeholder positions replaced, in reading order."""

    def __init__(self, tokens: TokenSpec, dim: int) -> None:
        super().__init__()

    def placeholders(self, visual_tokens: int) -> int:
        return visual_tokens

    def forward(
        self, embeds: Float[Tensor, "b t d"], is_image: Bool[Tensor, "b t"], visual: VisualTokens | None
    ) -> Float[Tensor, "b t d"]:
        """Raises DataError (E-COUNT) when placeholders and real visual tokens differ in number."""
        if visual is None:
            if bool(is_image.any()):
                raise DataError(f"E-COUNT: {int(is_image.sum())} image placeholders but no image was given")
            return embeds
        flat = visual.x[visual.mask].to(embeds.dtype)
        found = int(is_image.sum())
        if found != flat.shape[0]:
            raise DataError(
                f"E-COUNT: {found} image placeholders for {flat.shape[0]} visual tokens ({visual.x.shape[0]} images)"
            )
        return embeds.masked_scatter(is_image[..., None], flat)

    def init_weights(self) -> None:
        """Nothing to draw."""
