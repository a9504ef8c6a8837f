"""GLM-4.1V's merger (arXiv 2507.01006): a strided convolution to the llm's width, a matrix with norm, a gated layer.

Reference: ``transformers`` ``Glm4vVisionModel``'s ``downsample`` and ``Glm4vVisionPatchMerger``, equal to 1e-5 in fp32
and 1e-10 in fp64 with their weights. The convolution, whose stride is its side, is a matrix on the tokens of a block
side by side. Deviation: the vision encoder's last norm, an RMSNorm there, is the encoder's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast
from beni.nn.grid import merged_grid, regrid, space_to_depth
from beni.nn.mlp import SwiGLU
from beni.nn.queries import draw_layers
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=glm4v"


class Glm4v(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        r: rows and columns of a block (tokens); divides both sides of the grid.
        hidden: width of the gated layer; ``auto`` is ``4 * dim_out``.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        r: Annotated[int, AtLeast(1)],
        hidden: Annotated[int, AtLeast(1)] | Literal["auto"],
    ) -> None:
        super().__init__()
        merged_grid(tokens, r, PART)
        self.r = r
        self.downsample = nn.Linear(r * r * tokens.dim, dim_out)
        self.proj = nn.Linear(dim_out, dim_out, bias=False)
        self.norm = nn.LayerNorm(dim_out)
        self.mlp = SwiGLU(dim_out, 4 * dim_out if isinstance(hidden, str) else hidden, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(regrid(tokens, merged_grid(tokens, self.r, PART), self.proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        merged = space_to_depth(tokens, (self.r, self.r))
        x = F.gelu(self.norm(self.proj(self.downsample(merged.x))))
        return merged.with_features(self.mlp(x))

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))
