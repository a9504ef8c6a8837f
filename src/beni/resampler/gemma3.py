"""Gemma 3's projector (arXiv 2503.19786): average pooling, RMSNorm, one matrix; ends at the llm's width.

Reference: ``transformers`` ``Gemma3MultiModalProjector``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights.
There 64x64 patches become 16x16 tokens. Deviations: grids need not be square; sides that do not divide are an error,
where the reference drops the last rows and columns; the matrix does not start at zero unless ``init_std`` is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.errors import CompositionError
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.norms import RMSNorm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class Gemma3(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        r: rows and columns of the squares that are pooled (tokens); divides both sides of the grid.
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
        init_std: Annotated[float, AtLeast(0), Example("0.02")],
    ) -> None:
        super().__init__()
        self.r, self.init_std = r, init_std
        rows, columns = grid_of(tokens, "resampler=gemma3")
        if r < 1 or rows % r or columns % r:
            legal = [str(k) for k in range(1, min(rows, columns) + 1) if rows % k == 0 and columns % k == 0]
            raise CompositionError(
                "E-DIV",
                f"resampler=gemma3: r={r} does not divide the {rows}x{columns} grid of visual tokens",
                groups=("vision", "resampler"),
                fix=f"set resampler.r to one of {', '.join(legal)}",
            )
        # the weight stands for the reference's weight + 1
        self.norm = RMSNorm(tokens.dim)
        self.proj = nn.Linear(tokens.dim, dim_out, bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=gemma3")
        return replace(regrid(tokens, (rows // self.r, columns // self.r), self.proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        pooled = from_map(F.avg_pool2d(to_map(tokens), self.r), tokens)
        return pooled.with_features(self.proj(self.norm(pooled.x)))

    def init_weights(self) -> None:
        reset_norms(self)
        nn.init.normal_(self.proj.weight, std=self.init_std)
