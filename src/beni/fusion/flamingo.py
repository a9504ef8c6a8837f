"""Gated cross-attention in front of some of the llm's layers: text attends to visual tokens, which take no position.

Papers: Flamingo (arXiv 2204.14198), IDEFICS (arXiv 2306.16527), Llama 3.2 (arXiv 2407.21783). References: OpenFlamingo
(arXiv 2308.01390); ``transformers`` ``IdeficsGatedCrossAttentionLayer``, ``MllamaCrossAttentionDecoderLayer``.

Deviation: OpenFlamingo without ``latest`` lets what stands before any image see the mean of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from torch import nn

from beni.config.ranges import Above, AtLeast, AtMost, Example
from beni.fusion.base import Decoder
from beni.fusion.cross_attention import block_maker, draw_blocks, readers
from beni.fusion.marked import MarkedFusion
from beni.fusion.media import Media
from beni.types import LayerVisitor, TokenSpec


class Flamingo(MarkedFusion):
    """The embeddings ``(b, t, d)`` as they are, and blocks in front of layers ``first``, ``first + every``, ...

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
        sees: a position sees the ``latest`` image before it, or ``all`` before it.

    Raises:
        CompositionError: E-HEADS when ``num_kv_heads`` does not divide ``num_heads``; E-PLACE, by ``install``, when the
            llm has no layer ``first``.
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
    ) -> None:
        super().__init__(dim, every, first, sees)
        self._make = block_maker(dim, num_heads, num_kv_heads, head_dim, expansion, norm, head_norm, mlp, gate)

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    def block(self, llm: Decoder) -> nn.Module:
        return self._make()

    def visitors(self, media: Media) -> Mapping[int, LayerVisitor]:
        return readers(self.blocks, media)

    def draw(self) -> None:
        draw_blocks(self.blocks)
