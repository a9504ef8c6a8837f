"""Gemma 3's and Gemma 4's projectors: average pooling, RMSNorm, one matrix; they end at the llm's width.

Paper: Gemma 3 (arXiv 2503.19786), where 64x64 patches become 16x16 tokens. References, equal to 1e-5 in fp32 and 1e-10
in fp64 with their weights: ``transformers`` ``Gemma3MultiModalProjector``, and for Gemma 4, whose norm has no weights,
``Gemma4VisionPooler`` and ``Gemma4MultimodalEmbedder``; the means and scales of channels with which Gemma 4 may
standardise between these two are not here. Deviations: grids need not be square; sides that do not divide are an error,
where the references drop the last rows and columns or fail; the matrix does not start at zero unless ``init_std`` is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.nn.grid import from_map, merged_grid, regrid, to_map
from beni.nn.norms import RMSNorm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=gemma3"
EPS = 1e-6


class Gemma3(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        r: rows and columns of the squares that are pooled (tokens); divides both sides of the grid.
        norm_weight: give the norm a learned weight a channel.
        init_std: standard deviation of the normal draw of the matrix; 0 is the published start, at which all visual
            tokens are alike.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        r: Annotated[int, AtLeast(1)],
        norm_weight: bool,
        init_std: Annotated[float, AtLeast(0), Example("0.02")],
    ) -> None:
        super().__init__()
        self.r, self.init_std = r, init_std
        merged_grid(tokens, r, PART)
        # the weight stands for Gemma 3's weight + 1; Gemma 4 multiplies by the root of the width before its norm
        bare = nn.RMSNorm(tokens.dim, EPS / tokens.dim, elementwise_affine=False)
        self.norm = RMSNorm(tokens.dim, EPS) if norm_weight else bare
        self.proj = nn.Linear(tokens.dim, dim_out, bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(regrid(tokens, merged_grid(tokens, self.r, PART), self.proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        pooled = from_map(F.avg_pool2d(to_map(tokens), self.r), tokens)
        return pooled.with_features(self.proj(self.norm(pooled.x)))

    def init_weights(self) -> None:
        reset_norms(self)
        nn.init.normal_(self.proj.weight, std=self.init_std)
