"""The perceiver resampler of Flamingo and of IDEFICS: latents read visual tokens and themselves, multi-head.

Paper: Flamingo, arXiv 2204.14198; IDEFICS is arXiv 2306.16527. References: ``transformers``
``EvollaSequenceCompressorResampler`` (a protein model, but Flamingo's network) without its projection, and
``IdeficsPerceiverResampler``, equal to 1e-5 in fp32 and 1e-10 in fp64 with their weights.
Deviations: no embedding of video frames, since an image is one; keys and values come from two matrices, not one of
twice the height. Without positions of its own the result does not depend on the order of the tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost
from beni.nn.attention import GroupedQueryAttention
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class PerceiverFlamingo(Stage):
    """``(i, n, d) -> (i, num_latents, d)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens.
        depth: layers.
        num_latents: visual tokens going out (tokens).
        num_heads: heads of queries, keys and values.
        head_dim: width of one head.
        expansion: hidden width of the feed-forward layers as a multiple of the tokens' width.
        activation: between the feed-forward layers; ``gelu`` is Flamingo's, ``relu`` that of IDEFICS.
        qk_norm: a LayerNorm on each head of queries and keys, as IDEFICS allows.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_latents: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        head_dim: Annotated[int, AtLeast(1)],
        expansion: Annotated[int, AtLeast(1)],
        activation: Literal["gelu", "relu"],
        qk_norm: bool,
    ) -> None:
        super().__init__()
        dim = tokens.dim
        self.latents = nn.Parameter(torch.empty(num_latents, dim))
        layers = nn.ModuleList(
            FlamingoLayer(
                dim,
                attention=GroupedQueryAttention(
                    dim, num_heads, num_heads, head_dim, head_norm=nn.LayerNorm if qk_norm else nn.Identity
                ),
                mlp=FeedForward(dim, expansion * dim, dim, ACTIVATIONS[activation](), bias=False),
            )
            for _ in range(depth)
        )
        self.layers = cast("list[FlamingoLayer]", layers)  # a ModuleList's items are typed as plain modules
        self.norm = nn.LayerNorm(dim)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, len(self.latents), tokens.dim, tokens.space)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        latents = self.latents.to(tokens.x.dtype).expand(tokens.x.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens.x, tokens.mask, tokens.log_gate)
        return queried(self.norm(latents), tokens)

    def init_weights(self) -> None:
        nn.init.normal_(self.latents)
        # torch's own draw for linear layers, which both training codes left in place
        draw_layers(self, lambda weight: nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5))


class FlamingoLayer(nn.Module):
    """``(i, m, d), (i, n, d) -> (i, m, d)``: attention then feed-forward, both pre-norm and residual."""

    def __init__(self, dim: int, attention: GroupedQueryAttention, mlp: FeedForward) -> None:
        super().__init__()
        self.context_norm, self.latents_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = mlp

    def forward(
        self,
        latents: Float[Tensor, "i m d"],
        x: Float[Tensor, "i n d"],
        mask: Bool[Tensor, "i n"],
        log_gate: Float[Tensor, "i n"] | None,
    ) -> Float[Tensor, "i m d"]:
        queries = self.latents_norm(latents)
        context = torch.cat([self.context_norm(x), queries], dim=1)
        mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
        log_gate = None if log_gate is None else F.pad(log_gate, (0, queries.shape[1]))
        latents = latents + self.attention(queries, context, mask, log_gate=log_gate)
        return latents + self.mlp(self.mlp_norm(latents))
