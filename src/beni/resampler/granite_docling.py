"""Granite Docling's connector: blocks side by side to the llm's width, fixed two-dimensional positions, two norms.

Reference: the coarse path of ``transformers`` ``GraniteDoclingConnector``, equal to 1e-5 in fp32 and 1e-10 in fp64 with
its weights; the release has no paper. Deviations: grids need not be square. There a router sends pages with much on
them through a second path at half the factor, and mergers make features of earlier layers for deeper layers of the
llm; neither is here, since every picture takes as many tokens as its shape says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.grid import merged_grid, regrid, space_to_depth, to_map
from beni.nn.positions import sincos_table
from beni.nn.queries import draw_layers
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=granite_docling"


class GraniteDocling(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``.

    Positions, sines and cosines that are not trained, are those of the merged grid.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        r: rows and columns of a block (tokens); divides both sides of the grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides, E-DIM
            when 4 does not divide the llm's width.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int, *, r: Annotated[int, AtLeast(1)]) -> None:
        super().__init__()
        merged_grid(tokens, r, PART)
        if dim_out % 4:
            raise CompositionError(
                "E-DIM",
                f"{PART} splits the llm's width into four parts, which {dim_out} does not allow",
                groups=("resampler", "llm"),
                fix="set resampler=pixel_shuffle",
            )
        self.r = r
        self.token_norm = nn.LayerNorm(tokens.dim)
        self.fc1 = nn.Linear(r * r * tokens.dim, dim_out, bias=False)
        self.norm = nn.LayerNorm(dim_out)
        self.fc2 = nn.Linear(dim_out, dim_out, bias=False)
        self.out_norm = nn.LayerNorm(dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(regrid(tokens, merged_grid(tokens, self.r, PART), self.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        merged = space_to_depth(tokens.with_features(self.token_norm(tokens.x)), (self.r, self.r))
        x = self.fc1(merged.x)
        rows, columns = to_map(merged).shape[2:]
        positions = sincos_table((rows, columns), x.shape[-1], x.device).flatten(1).T
        x = F.gelu(self.norm(x + positions.to(x.dtype)))
        return merged.with_features(self.out_norm(self.fc2(x)))

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=weight.shape[1] ** -0.5))
