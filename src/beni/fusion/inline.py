"""Inline fusion: visual tokens stand in the text where their image's placeholders are (LLaVA, arXiv 2304.08485).

``image_attention`` says which positions may look ahead: none (LLaVA and most others), the tokens of an image among
themselves (Gemma 3, arXiv 2503.19786), or all that stands before the answer (PaliGemma, arXiv 2407.07726).

Scale: the visual tokens that a fresh projector makes may be 10 to 100 times as large as text embeddings (0.01 to 0.2 in
pretrained llms); then they pass through a pre-norm llm almost unchanged, and learn slowly. ``out_norm`` norms them;
``match_text_rms`` multiplies them by one number, measured on the first batch of the run and kept, that makes them as
large as the llm's text embeddings.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.errors import DataError
from beni.fusion.base import Fusion
from beni.nn.norms import make_norm, reset_norms
from beni.stage import TokenSpec
from beni.types import VisualTokens


class InlineFusion(Fusion):
    """``(b, t, d)`` with the placeholder positions replaced, in reading order.

    Args:
        tokens: spec of the visual tokens.
        dim: width of the llm.
        image_attention: who may look ahead: ``causal`` nobody, ``image`` an image's tokens at each other, ``prefix``
            everything before the first supervised position.
        out_norm: ``none``, ``layernorm`` or ``rmsnorm`` on the visual tokens.
        match_text_rms: bring the visual tokens to the size of text embeddings by one number.
    """

    scale: Tensor

    def __init__(
        self,
        tokens: TokenSpec,
        dim: int,
        *,
        image_attention: Literal["causal", "image", "prefix"],
        out_norm: Literal["none", "layernorm", "rmsnorm"],
        match_text_rms: bool,
    ) -> None:
        super().__init__()
        self.image_attention, self.match_text_rms = image_attention, match_text_rms
        self.norm = make_norm(out_norm, dim)
        if match_text_rms:
            self.register_buffer("scale", torch.ones(()))

    @property
    def sees_ahead(self) -> bool:
        return self.image_attention != "causal"

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
        flat = self._scaled(visual).to(embeds.dtype)
        # an exported program cannot choose by values
        if not torch.compiler.is_exporting() and (found := int(is_image.sum())) != flat.shape[0]:
            raise DataError(
                f"E-COUNT: {found} image placeholders for {flat.shape[0]} visual tokens ({visual.x.shape[0]} images)"
            )
        return embeds.masked_scatter(is_image[..., None], flat)

    def blocks(
        self, images: Int[Tensor, "t"], asked: Bool[Tensor, "t"], cu_seqlens: Int[Tensor, "s_plus_1"]
    ) -> Int[Tensor, "t"]:
        if self.image_attention == "image":
            return images
        begins = torch.ones_like(asked)  # a run of them is a block; borders of segments end it
        begins[1:] = asked[1:] & ~asked[:-1]
        begins[cu_seqlens[:-1].long()] = True
        return torch.where(asked, begins.cumsum(0), -1)

    @property
    def calibrates(self) -> bool:
        return self.match_text_rms

    @torch.no_grad()
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        """Measures the number that makes ``visual`` as large as ``text`` (root mean squares)."""
        self.scale.fill_(1.0)
        self.scale.copy_(_rms(text) / _rms(self._scaled(visual)).clamp(min=1e-12))

    def _scaled(self, visual: VisualTokens) -> Float[Tensor, "k d"]:
        flat = self.norm(visual.x[visual.mask])
        return flat * self.scale.to(flat.dtype) if self.match_text_rms else flat

    def init_weights(self) -> None:
        reset_norms(self)


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()
