"""Perceiver resampler with grouped-query attention: learned latents read the visual tokens.

Paper: Idefics2, arXiv 2405.02246 (the Perceiver of arXiv 2103.03206 in Flamingo's form, arXiv 2204.14198).
Reference: ``transformers`` ``Idefics2PerceiverResampler``; equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights.
Deviation: the reference initialises all latents to ones, so every output token is identical at the start; here they
are drawn from N(0, 1/d) and the residual branches start smaller by 1/sqrt(2 depth), as in Idefics2's own training.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.mlp import SwiGLU
from beni.nn.norms import RMSNorm
from beni.nn.queries import check_kv_heads, draw_layers, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class Perceiver(Stage):
    """``(i, n, d) -> (i, num_latents, d)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens.
        hidden_size: width to work at; ``auto`` takes the width of the incoming tokens.
        depth: layers.
        num_latents: visual tokens going out (tokens).
        num_heads: query heads.
        num_kv_heads: key/value heads; 1 is multi-query, ``num_heads`` is multi-head. Must divide ``num_heads``.
        head_dim: width of one head; ``num_heads * head_dim`` need not equal ``hidden_size``.
        concat_latents: let the latents attend to themselves too (keys are visual tokens then latents).
        attention_dropout: probability in [0, 1).

    Raises:
        CompositionError: E-HEADS when ``num_kv_heads`` does not divide ``num_heads``; E-DIM when ``hidden_size``
            differs from the width of the incoming tokens.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        hidden_size: Annotated[int, AtLeast(1)] | Literal["auto"],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_latents: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        num_kv_heads: Annotated[int, AtLeast(1)],
        head_dim: Annotated[int, AtLeast(1)],
        concat_latents: bool,
        attention_dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        check_kv_heads(num_heads, num_kv_heads)
        if hidden_size not in ("auto", tokens.dim):
            raise CompositionError(
                "E-DIM",
                f"resampler.hidden_size={hidden_size} but the incoming visual tokens are {tokens.dim} wide",
                groups=("vision", "resampler"),
                fix="set resampler.hidden_size=auto",
            )
        dim = tokens.dim
        self.depth, self.num_latents, self.concat_latents = depth, num_latents, concat_latents
        self.latents = nn.Parameter(torch.empty(num_latents, dim))
        layers = nn.ModuleList(
            PerceiverLayer(dim, num_heads, num_kv_heads, head_dim, concat_latents, attention_dropout)
            for _ in range(depth)
        )
        self.layers = cast("list[PerceiverLayer]", layers)  # a ModuleList's items are typed as plain modules
        self.norm = RMSNorm(dim)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, self.num_latents, tokens.dim, tokens.space)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        latents = self.latents.to(tokens.x.dtype).expand(tokens.x.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens.x, tokens.mask, tokens.log_gate)
        return queried(self.norm(latents), tokens)

    def init_weights(self) -> None:
        dim = self.latents.shape[1]
        nn.init.normal_(self.latents, std=dim**-0.5)
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=(0.4 / weight.shape[1]) ** 0.5))
        for layer in self.layers:
            for branch_end in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(branch_end.weight, std=(0.4 / branch_end.in_features / (2 * self.depth)) ** 0.5)


class PerceiverLayer(nn.Module):
    """``(i, m, d), (i, n, d) -> (i, m, d)``: cross-attention then SwiGLU, both pre-norm and residual."""

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, concat_latents: bool, dropout: float
    ) -> None:
        super().__init__()
        self.concat_latents, self.dropout = concat_latents, dropout
        self.input_latents_norm = RMSNorm(dim)
        self.input_context_norm = RMSNorm(dim)
        self.self_attn = GroupedQueryAttention(dim, num_heads, num_kv_heads, head_dim)
        self.post_attention_layernorm = RMSNorm(dim)
        self.mlp = SwiGLU(dim, 4 * dim, dim)

    def forward(
        self,
        latents: Float[Tensor, "i m d"],
        x: Float[Tensor, "i n d"],
        mask: Bool[Tensor, "i n"],
        log_gate: Float[Tensor, "i n"] | None,
    ) -> Float[Tensor, "i m d"]:
        queries, context = self.input_latents_norm(latents), self.input_context_norm(x)
        if self.concat_latents:
            context = torch.cat([context, queries], dim=1)
            mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
            log_gate = None if log_gate is None else F.pad(log_gate, (0, queries.shape[1]))
        latents = latents + self.self_attn(queries, context, mask, self.dropout, log_gate=log_gate)
        return latents + self.mlp(self.post_attention_layernorm(latents))
