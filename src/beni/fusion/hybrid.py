"""Hybrid fusion: the whole picture stands in the text, its tiles are read by gated cross-attention (NVLM-H, arXiv
2409.11402).

A picture that views cut into tiles keeps the tokens of its overview as positions of the llm, as ``inline`` has them, so
that attention reasons over text and picture together. Tokens of the tiles take no position: blocks in front of some
layers (``fusion/cross_attention.py``) read them, from the first position of their picture on, the overview's own
positions included. Long text and high resolution then cost each other little.

No release has the hybrid, only its decoder-only sibling, so nothing can be compared with it; what it must equal are
its two halves. Deviations: in the text of NVLM-H a tag stands for each tile, and the mask of cross-attention ties tag
and tile together; here no tags stand there, and every position sees all tiles of the images that it sees. A picture of
one view is inline alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast, AtMost, Example
from beni.fusion.base import Beside, Decoder, Fusion
from beni.fusion.cross_attention import block_maker, draw_blocks, readers
from beni.fusion.inline import InlineFusion
from beni.fusion.media import Media
from beni.fusion.own_layers import OwnLayers
from beni.types import Markup, Sequence, TokenSpec, VisualTokens


class HybridFusion(Fusion):
    """The embeddings ``(b, t, d)`` with the placeholder positions replaced by tokens of whole pictures, and blocks in
    front of layers ``first``, ``first + every``, ... that read those of their parts.

    Args:
        tokens: spec of the visual tokens.
        dim: width of the llm.
        every: layers of the llm from one block to the next.
        first: number of the layer, from 0 on, that the first block stands in front of.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values; must divide ``num_heads``.
        head_dim: width of a head.
        expansion: hidden width of the feed-forward half as a multiple of the llm's.
        norm: in front of both halves.
        head_norm: an RMSNorm on each head of queries and keys.
        mlp: ``gelu`` has two matrices, ``swiglu`` three.
        gate: ``scalar`` one number a half, ``channel`` one a channel.
        sees: a position sees the tiles of the ``latest`` image that has begun, or of ``all`` that have.
        image_attention: as of ``inline``.
        out_norm: as of ``inline``, on the tokens of whole pictures.
        match_text_rms: as of ``inline``, likewise.

    Raises:
        CompositionError: E-HEADS when ``num_kv_heads`` does not divide ``num_heads``; E-PLACE, by ``install``, when the
            llm has no layer ``first``. The model refuses views without a whole picture or without parts (E-STACK).
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim: int,
        *,
        every: Annotated[int, AtLeast(1)],
        first: Annotated[int, AtLeast(0)],
        num_heads: Annotated[int, AtLeast(1)],
        num_kv_heads: Annotated[int, AtLeast(1)],
        head_dim: Annotated[int, AtLeast(1)],
        expansion: Annotated[float, Above(0), AtMost(1000), Example("4")],
        norm: Literal["layernorm", "rmsnorm"],
        head_norm: bool,
        mlp: Literal["gelu", "swiglu"],
        gate: Literal["scalar", "channel"],
        sees: Literal["latest", "all"],
        image_attention: Literal["causal", "image", "prefix"],
        out_norm: Literal["none", "layernorm", "rmsnorm"],
        match_text_rms: bool,
    ) -> None:
        super().__init__()
        self.sees = sees
        self._make = block_maker(dim, num_heads, num_kv_heads, head_dim, expansion, norm, head_norm, mlp, gate)
        self.inline = InlineFusion(
            tokens, dim, image_attention=image_attention, out_norm=out_norm, match_text_rms=match_text_rms
        )
        self.blocks = OwnLayers(first, every)

    @property
    def looks_ahead(self) -> bool:
        return self.inline.looks_ahead

    @property
    def reads_gates(self) -> bool:
        return False

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset({"parts"})

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    @property
    def calibrates(self) -> bool:
        return self.inline.calibrates

    def markup(self, parts: Markup) -> Markup:
        return self.inline.markup(parts)

    def install(self, llm: Decoder) -> None:
        self.blocks.install(llm, self._make)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks.values())

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        if visual is None:
            return self.inline(sequence, None, owners)
        inline = visual.of_whole()
        fused = self.inline(sequence, inline, owners)
        samples, columns = _begins(sequence, inline)
        media = Media.at(fused, _aside(visual), samples, columns, self.sees == "latest")
        return replace(fused, visitors=readers(self.blocks, media))

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        blank = self.inline.blank(sequence, visual.of_whole())
        return replace(blank, visitors=readers(self.blocks, Media.unseen(sequence, _aside(visual))))

    @torch.no_grad()
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        self.inline.calibrate(text, visual.of_whole())

    def init_weights(self) -> None:
        self.inline.init_weights()
        draw_blocks(self.blocks)


def _aside(visual: VisualTokens) -> VisualTokens:
    """``(i, n, d) -> (i, m, d)``: the real tokens of parts of pictures alone, at least one place for them."""
    parts = torch.zeros_like(visual.mask) if visual.whole is None else visual.mask & ~visual.whole
    if torch.compiler.is_exporting() or visual.x.is_meta:  # neither can choose by values
        return replace(visual, mask=parts, dropped=None)
    most = max(1, int(parts.sum(1).max()))
    order = torch.argsort((~parts).byte(), dim=1, stable=True)[:, :most]
    return replace(visual.gather(order), mask=parts.gather(1, order), dropped=None)


def _begins(sequence: Sequence, inline: VisualTokens) -> tuple[Int[Tensor, "i"], Int[Tensor, "i"]]:
    """The sample of each image, and the number within it of the first position of its own that the llm reads: where all
    of them have been dropped, that of what follows.
    """
    is_image, laid = sequence.is_image, inline.laid.sum(1)
    places = torch.argsort((~is_image).flatten().byte(), stable=True)  # those of images first, in reading order
    first = places[laid.cumsum(0) - laid]
    samples, columns = sequence.numbered()
    if inline.dropped is not None:
        kept = torch.ones_like(is_image).masked_scatter(is_image, inline.mask[inline.laid])
        columns = columns - sequence.gone_before(kept)
    return samples.flatten()[first], columns.flatten()[first]
