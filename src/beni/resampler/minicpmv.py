"""MiniCPM-V 4.6's merger: tokens of a window attend to each other, then a feed-forward layer makes one of them.

Reference: ``transformers`` ``MiniCPMV4_6ViTWindowAttentionMerger``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its
weights; the release has no paper. Deviations: there it stands between two layers of the vision encoder, here behind the
last. The initial weights, there of unit variance in blocks of which a merged token has one for each of its four, are
small, so that training starts from the mean of a window. What follows in the release, ``MiniCPMV4_6Merger``, is
``resampler=pixel_shuffle`` with a connector of two layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import nn

from beni.config.ranges import AtLeast
from beni.nn.attention import GroupedQueryAttention
from beni.nn.grid import blocks_of, merged_grid, regrid, space_to_depth, to_map
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers, head_dim_of
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=minicpmv"
EPS = 1e-6


class MiniCpmV(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, d)``; the feed-forward layer adds to the mean of the window.

    Args:
        tokens: spec of the incoming visual tokens, at whose width the attention works.
        r: rows and columns of a window (tokens); divides both sides of the grid.
        num_heads: heads; must divide the width of the tokens.
        hidden: width of the feed-forward layer; ``auto`` is four times that of the tokens of a window side by side.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides, E-HEADS
            when ``num_heads`` does not divide the width.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        r: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        hidden: Annotated[int, AtLeast(1)] | Literal["auto"],
    ) -> None:
        super().__init__()
        merged_grid(tokens, r, PART)
        self.r = r
        dim, wide = tokens.dim, r * r * tokens.dim
        self.token_norm = nn.LayerNorm(dim, eps=EPS)
        self.attention = GroupedQueryAttention(dim, num_heads, num_heads, head_dim_of(dim, num_heads, PART), bias=True)
        self.window_norm = nn.LayerNorm(wide, eps=EPS)
        between = 4 * wide if isinstance(hidden, str) else hidden
        self.mlp = FeedForward(wide, between, dim, nn.GELU(approximate="tanh"), bias=True)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return regrid(tokens, merged_grid(tokens, self.r, PART), tokens.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        windows = blocks_of(to_map(tokens), (self.r, self.r))  # (i, m, r * r, d)
        flat = windows.flatten(0, 1)
        normed = self.token_norm(flat)
        read = (flat + self.attention(normed, normed)).view_as(windows)
        merged = self.mlp(self.window_norm(read.flatten(2))) + read.mean(2)
        return space_to_depth(tokens, (self.r, self.r)).with_features(merged)

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))
