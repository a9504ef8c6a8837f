"""Inline fusion: visual tokens stand in the text where their image's placeholders are (LLaVA, arXiv 2304.08485).

``image_attention`` says which positions may look ahead: none (LLaVA and most others), the tokens of an image among
themselves (Gemma 3, arXiv 2503.19786), or all that stands before the answer (PaliGemma, arXiv 2407.07726).

Scale: the visual tokens that a fresh projector makes may be 10 to 100 times as large as text embeddings (0.01 to 0.2 in
pretrained llms); then they pass through a pre-norm llm almost unchanged, and learn slowly. ``out_norm`` norms them;
``match_text_rms`` multiplies them by one number, measured on the first batch of the run and kept, that makes them as
large as the llm's text embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.errors import DataError
from beni.fusion.base import Beside, Decoder, Fusion
from beni.nn.gates import openness
from beni.nn.norms import make_norm, reset_norms
from beni.types import Markup, Sequence, TokenSpec, VisualTokens


class InlineFusion(Fusion):
    """The embeddings ``(b, t, d)`` with the placeholder positions replaced, in reading order.

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
    def looks_ahead(self) -> bool:
        return self.image_attention != "causal"

    @property
    def reads_gates(self) -> bool:
        return False

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset()

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    def markup(self, parts: Markup) -> Markup:
        return parts

    def install(self, llm: Decoder) -> None:
        """Nothing is put into the llm."""

    def layers(self) -> list[nn.Module]:
        return []

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        if visual is None:
            if bool(sequence.is_image.any()):
                raise DataError(f"E-COUNT: {int(sequence.is_image.sum())} image placeholders but no image was given")
            return self._looking_ahead(sequence, None)
        laid, is_image = visual.laid, sequence.is_image
        flat = self.sized(visual.x[laid]).to(sequence.embeds.dtype)
        # neither an exported program nor a dry run can choose by values
        chooses = not (torch.compiler.is_exporting() or flat.is_meta)
        if chooses and (found := int(is_image.sum())) != flat.shape[0]:
            raise DataError(
                f"E-COUNT: {found} image placeholders for {flat.shape[0]} visual tokens ({visual.x.shape[0]} images)"
            )
        fused = replace(sequence, embeds=sequence.embeds.masked_scatter(is_image[..., None], flat))
        if flat.is_meta:
            return fused
        if visual.log_gate is not None and not (chooses and _all_open(visual)):
            gates = torch.zeros(is_image.shape, device=flat.device, dtype=visual.log_gate.dtype)
            fused = replace(fused, log_gate=gates.masked_scatter(is_image, visual.log_gate[laid]))
        fused = self._looking_ahead(fused, visual)
        if visual.dropped is None:
            return fused
        kept = torch.ones_like(is_image).masked_scatter(is_image, visual.mask[laid])
        return fused.keep(kept, visual.compact)

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        nothing = self.sized(visual.x[visual.laid]).sum()
        if visual.log_gate is not None:  # as an openness: 0 times a gate that is closed would be no number
            nothing = nothing + openness(visual.log_gate).sum()
        return replace(sequence, embeds=sequence.embeds + nothing * 0.0)

    def _looking_ahead(self, sequence: Sequence, visual: VisualTokens | None) -> Sequence:
        """The sequence with the blocks of positions that see each other both ways."""
        if self.image_attention == "causal":
            return sequence
        if self.image_attention == "image":
            return replace(sequence, blocks=image_numbers(sequence, visual))
        asked = sequence.asked
        begins = torch.ones_like(asked)  # a run of them is a block; borders of samples end it
        begins[:, 1:] = asked[:, 1:] & ~asked[:, :-1]
        begins |= sequence.begins
        return replace(sequence, blocks=torch.where(asked, begins.flatten().cumsum(0).view_as(asked), -1))

    @property
    def calibrates(self) -> bool:
        return self.match_text_rms

    @torch.no_grad()
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        """Measures the number that makes ``visual`` as large as ``text`` (root mean squares)."""
        self.scale.fill_(1.0)
        self.scale.copy_(_rms(text) / _rms(self.sized(visual.x[visual.mask])).clamp(min=1e-12))

    def sized(self, features: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Visual tokens as large as ``out_norm`` and ``match_text_rms`` want them."""
        normed = self.norm(features)
        return normed * self.scale.to(normed.dtype) if self.match_text_rms else normed

    def init_weights(self) -> None:
        reset_norms(self)


def image_numbers(sequence: Sequence, visual: VisualTokens | None) -> Int[Tensor, "b t"]:
    """Number of the image of each placeholder, in reading order, where each visual token has one; -1 at text."""
    numbers = sequence.images.clone()
    if visual is not None:
        counts = visual.laid.sum(1)
        numbers[sequence.is_image] = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return numbers


def _all_open(visual: VisualTokens) -> bool:
    """Whether the gates of real tokens say nothing, and need no gradient: the llm then computes what it does without,
    bit by bit.
    """
    return visual.log_gate is not None and not (torch.is_grad_enabled() or bool(visual.log_gate[visual.mask].any()))


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()
