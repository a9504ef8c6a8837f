"""Qwen-VL's resampler (arXiv 2308.12966): one cross-attention from queries on a grid to patches on theirs.

Reference: ``visual.py`` of the released model. No class of it can be loaded, so the tests assemble it from
``torch.nn.MultiheadAttention`` and the other layers of torch: equal to 1e-5 in fp32 and 1e-10 in fp64.
Deviations: the grid of the patches need not be square, and without a grid each token has the position of its place.
The norm and the matrix after the attention, which the release keeps in the vision encoder, are here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.positions import positions_at, sincos_table
from beni.nn.queries import centres, draw_layers, draw_stacked, head_dim_of, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

HEAD_DIM = 128
EPS = 1e-6


class QwenVL(Stage):
    """``(i, n, d) -> (i, side^2, dim_out)``, whatever n is and whichever of its tokens are padding.

    Positions, sines and cosines that are not trained, are added to queries and keys, not to values.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the attention works.
        side: rows and columns of the grid of queries (tokens).
        num_heads: heads; ``auto`` gives each 128 channels.

    Raises:
        CompositionError: E-HEADS when ``num_heads`` does not divide the llm's width, E-DIM when 4 does not.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        side: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)] | Literal["auto"],
    ) -> None:
        super().__init__()
        heads = max(1, dim_out // HEAD_DIM) if num_heads == "auto" else num_heads
        head_dim = head_dim_of(dim_out, heads, "resampler=qwen_vl")
        if dim_out % 4:
            raise CompositionError(
                "E-DIM",
                f"resampler=qwen_vl splits the llm's width into four parts, which {dim_out} does not allow",
                groups=("resampler", "llm"),
                fix="set resampler=perceiver",
            )
        self.side = side
        self.queries = nn.Parameter(torch.empty(side**2, dim_out))
        self.kv_proj = nn.Identity() if tokens.dim == dim_out else nn.Linear(tokens.dim, dim_out, bias=False)
        self.query_norm, self.kv_norm = nn.LayerNorm(dim_out, eps=EPS), nn.LayerNorm(dim_out, eps=EPS)
        self.attention = GroupedQueryAttention(dim_out, heads, heads, head_dim, bias=True)
        self.norm = nn.LayerNorm(dim_out, eps=EPS)
        self.proj = nn.Linear(dim_out, dim_out, bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, len(self.queries), self.proj.out_features, "llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = self.kv_norm(self.kv_proj(tokens.x))
        table = sincos_table((self.side, self.side), self.proj.in_features, x.device)
        queries = (self.query_norm(self.queries) + table.flatten(1).T.to(x.dtype)).expand(len(x), -1, -1)
        keys = x + positions_at(table, tokens).to(x.dtype)
        read = self.attention(queries, keys, tokens.mask, values=x, log_gate=tokens.log_gate)
        return queried(self.proj(self.norm(read)), tokens, centres(self.side, x.device))

    def init_weights(self) -> None:
        dim = self.proj.in_features
        nn.init.trunc_normal_(self.queries, std=0.02)
        draw_layers(self, lambda weight: nn.init.trunc_normal_(weight, std=0.02))
        draw_stacked(self.attention)
        nn.init.normal_(self.proj.weight, std=dim**-0.5)
