"""Average pooling of the grid: the resampler of DeCo (arXiv 2405.20985), and a strong baseline without parameters.

Adaptive pooling: cell (i, j) of the result averages rows floor(i H / out) to ceil((i + 1) H / out) of the grid and the
columns likewise, so the bins overlap where the sides do not divide. DeCo pools before the connector, as here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from beni.errors import CompositionError
from beni.stage import Stage, StageContext, TokenSpec
from beni.types import VisualTokens


class AvgPool(Stage):
    """``(i, rows * columns, d) -> (i, side^2, d)``.

    Args:
        tokens: spec of the incoming visual tokens.
        side: rows and columns of the result (tokens), at most those of the grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when the grid is smaller than the result.
    """

    def __init__(self, tokens: TokenSpec, *, side: int) -> None:
        super().__init__()
        self.side = side
        if tokens.grid is None:
            raise CompositionError(
                "E-GRID",
                "resampler=avg_pool needs a dense grid, but the tokens before it form none",
                groups=("selector", "resampler"),
                fix="set selector=none, or resampler=perceiver",
            )
        if not 1 <= side <= min(tokens.grid):
            raise CompositionError(
                "E-DIV",
                f"resampler.side={side} cannot be pooled from a grid of {tokens.grid[0]}x{tokens.grid[1]}",
                groups=("vision", "resampler"),
                fix=f"set resampler.side to 1..{min(tokens.grid)}",
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, n=self.side**2, grid=(self.side, self.side))

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if tokens.grid is None:
            raise ValueError("avg_pool was given tokens without a grid")
        side = (self.side, self.side)
        maps = tokens.x.transpose(1, 2).unflatten(2, tokens.grid)  # (i, d, rows, columns)
        pooled = F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
        share = tokens.size.sum(1, keepdim=True) / self.side**2
        dense = VisualTokens.dense(pooled, side)
        return replace(dense, size=share.expand_as(dense.size).to(torch.float32))

    def flops(self, tokens: TokenSpec) -> int:
        return 0  # pooling is no matrix product

    def init_weights(self) -> None:
        """Nothing to draw."""
