"""ERNIE 4.5's variable-resolution resampler: neighbours side by side, two feed-forward layers with norms, one matrix.

Reference: ``transformers`` ``Ernie4_5_VLMoeVariableResolutionResamplerModel``, equal to 1e-5 in fp32 and 1e-10 in fp64
with its weights on one frame (ERNIE 4.5, a report of Baidu, 2025). There the second layer merges two frames of a video,
and a picture stands for both. Deviation: here it takes the picture once, so that its first matrix is the sum of the two
halves of theirs: the same function in half the products, and no videos. Weights are drawn as torch does, where the
reference draws all from N(0, 0.02).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from beni.config.ranges import AtLeast
from beni.nn.conv import init_as_torch
from beni.nn.grid import merged_grid, regrid, space_to_depth
from beni.nn.mlp import FeedForward
from beni.nn.norms import RMSNorm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=ernie"


class Ernie(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``, at ``r^2 d`` channels in between.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        r: rows and columns of a block (tokens); divides both sides of the grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int, *, r: Annotated[int, AtLeast(1)]) -> None:
        super().__init__()
        merged_grid(tokens, r, PART)
        self.r = r
        wide = r * r * tokens.dim
        self.spatial = FeedForward(wide, wide, wide, nn.GELU(), bias=True)
        self.spatial_norm = nn.LayerNorm(wide, eps=1e-6)
        self.temporal = FeedForward(wide, wide, wide, nn.GELU(), bias=True)
        self.temporal_norm = nn.LayerNorm(wide, eps=1e-6)
        self.proj = nn.Linear(wide, dim_out)
        self.norm = RMSNorm(dim_out, eps=1e-5)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(regrid(tokens, merged_grid(tokens, self.r, PART), self.proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        merged = space_to_depth(tokens, (self.r, self.r))
        x = self.spatial_norm(self.spatial(merged.x))
        x = self.temporal_norm(self.temporal(x))
        return merged.with_features(self.norm(self.proj(x)))

    def init_weights(self) -> None:
        init_as_torch(self)
        reset_norms(self)
