"""Aria's projector (arXiv 2410.05993): learned queries look at the visual tokens once, then a feed-forward layer.

Reference: ``transformers`` ``AriaProjector``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights. It projects
queries, keys and values twice, once without and once with biases; so does this, to load what it learned.
Deviations: the reference sets its queries to zero, which makes all output tokens alike at the start; here they are
drawn from N(0, 1/d). It takes as many of them as a table says for the number of patches; here a key says it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from beni.config.ranges import AtLeast
from beni.nn.attention import GroupedQueryAttention
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers, draw_stacked, head_dim_of, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class Aria(Stage):
    """``(i, n, d) -> (i, num_queries, dim_out)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens, at whose width the attention works.
        dim_out: width of the llm.
        num_queries: visual tokens going out (tokens).
        num_heads: heads; must divide the width of the tokens.

    Raises:
        CompositionError: E-HEADS when ``num_heads`` does not divide the width.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        num_queries: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
    ) -> None:
        super().__init__()
        dim = tokens.dim
        head_dim = head_dim_of(dim, num_heads, "resampler=aria")
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        self.query_norm, self.context_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.attention = GroupedQueryAttention(dim, num_heads, num_heads, head_dim, bias=True)
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, dim_out, dim_out, nn.GELU(approximate="tanh"), bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, len(self.queries), self.mlp.fc2.out_features, "llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = self.context_norm(tokens.x)
        queries = self.q_proj(self.query_norm(self.queries)).expand(len(x), -1, -1)
        read = self.attention(queries, self.k_proj(x), tokens.mask, values=self.v_proj(x), log_gate=tokens.log_gate)
        return queried(self.mlp(self.norm(self.linear(read))), tokens)

    def init_weights(self) -> None:
        nn.init.normal_(self.queries, std=self.queries.shape[1] ** -0.5)
        draw_layers(self, lambda weight: nn.init.trunc_normal_(weight, std=0.02))
        draw_stacked(self.attention)
