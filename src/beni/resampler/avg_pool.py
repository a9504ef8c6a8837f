"""Average pooling of the grid: the resampler of DeCo (arXiv 2405.20985), and a strong baseline without parameters.

Adaptive pooling: cell (i, j) of the result averages rows floor(i H / out) to ceil((i + 1) H / out) of the grid and the
columns likewise, so the bins overlap where the sides do not divide. DeCo pools before the connector, as here.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class AvgPool(Stage):
    """``(i, rows * columns, d) -> (i, side^2, d)``.

    Args:
        tokens: spec of the incoming visual tokens.
        side: rows and columns of the result (tokens), at most those of the grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when the grid is smaller than the result.
    """

    def __init__(self, tokens: TokenSpec, *, side: Annotated[int, AtLeast(1)]) -> None:
        super().__init__()
        self.side = side
        grid = grid_of(tokens, "resampler=avg_pool")
        if not 1 <= side <= min(grid):
            raise CompositionError(
                "E-DIV",
                f"resampler.side={side} cannot be pooled from a grid of {grid[0]}x{grid[1]}",
                groups=("vision", "resampler"),
                fix=f"set resampler.side to 1..{min(grid)}",
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return regrid(tokens, (self.side, self.side), tokens.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return from_map(F.adaptive_avg_pool2d(to_map(tokens), (self.side, self.side)), tokens)

    def init_weights(self) -> None:
        """Nothing to draw."""
