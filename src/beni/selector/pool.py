"""Average pooling to a budget of tokens: as simple as it is hard to beat (UniPruneBench, arXiv 2511.02650).

The grid is pooled adaptively to the largest one that the budget holds and that is as high and wide as the picture's, as
nearly as can be. Tokens stay on a grid, so all that needs one may follow.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, grid_within
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PooledTokens(Stage):
    """``(i, rows * columns, d) -> (i, r * c, d)``.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens that there may be at most: a whole number, or a share (a float, at most 1.0).

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """

    def __init__(
        self, tokens: TokenSpec, *, keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)]
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        grid_of(tokens, "selector=pool")

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return regrid(tokens, self._grid(grid_of(tokens, "selector=pool")), tokens.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(tokens)
        return from_map(F.adaptive_avg_pool2d(features, self._grid((features.shape[2], features.shape[3]))), tokens)

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the result."""
        return grid_within(grid, self.budget)
