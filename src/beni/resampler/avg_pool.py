"""Average pooling of the grid: the resampler of DeCo (arXiv 2405.20985), and a strong baseline without parameters.

Adaptive pooling: cell (i, j) of the result averages rows floor(i H / out) to ceil((i + 1) H / out) of the grid and the
columns likewise, so the bins overlap where the sides do not divide. DeCo pools before the connector, as here.

``side=1`` is the mean of all tokens, each as much as its gate is open, and needs no grid: it takes what a selector
leaves.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.gates import open_mean
from beni.nn.grid import from_map, regrid, to_map
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class AvgPool(Stage):
    """``(i, rows * columns, d) -> (i, side^2, d)``, or ``(i, n, d) -> (i, 1, d)`` of tokens without a grid.

    Args:
        tokens: spec of the incoming visual tokens.
        side: rows and columns of the result (tokens), at most those of the grid; 1 where there is no grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid and ``side`` is not 1, E-DIV when the grid is
            smaller than the result.
    """

    def __init__(self, tokens: TokenSpec, *, side: Annotated[int, AtLeast(1)]) -> None:
        super().__init__()
        self.side = side
        if side == 1:
            self.reads = frozenset[Reads]({"log_gate"})
        elif tokens.grid is None:
            raise CompositionError(
                "E-GRID",
                f"resampler.side={side} needs a dense grid, but the tokens before resampler=avg_pool form none",
                groups=("selector", "resampler"),
                fix="set resampler.side=1 for their mean, selector=none, or resampler=perceiver",
            )
        elif not 1 <= side <= min(tokens.grid):
            rows, columns = tokens.grid
            raise CompositionError(
                "E-DIV",
                f"resampler.side={side} cannot be pooled from a grid of {rows}x{columns}",
                groups=("vision", "resampler"),
                fix=f"set resampler.side to 1..{min(tokens.grid)}",
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return regrid(tokens, (self.side, self.side), tokens.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if self.side == 1 and (tokens.grid is None or tokens.log_gate is not None):
            return _mean(tokens)
        return from_map(F.adaptive_avg_pool2d(to_map(tokens), (self.side, self.side)), tokens)

    def init_weights(self) -> None:
        """Nothing to draw."""


def _mean(tokens: VisualTokens) -> VisualTokens:
    """One token for each row: the mean of the real ones, each as much as its gate is open; 0 where there is none."""
    gates = torch.zeros_like(tokens.size) if tokens.log_gate is None else tokens.log_gate
    gates = gates.masked_fill(~tokens.mask, -torch.inf)

    def mean(of: Tensor) -> Tensor:
        exact = of if of.dtype == torch.float64 else of.float()
        return open_mean(exact, gates, lambda x: x.sum(1, keepdim=True)).to(of.dtype)

    size = (tokens.size * tokens.mask).sum(1, keepdim=True)
    return VisualTokens.fresh(mean(tokens.x), torch.ones_like(tokens.mask[:, :1]), mean(tokens.yx), size, (1, 1))
