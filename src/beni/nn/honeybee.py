"""What the two resamplers of Honeybee (arXiv 2312.06742) share: positions, the pooled grid, tokens after the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.positions import positions_at
from beni.nn.rows import constants
from beni.types import TokenSpec, VisualTokens


class LearnedPositions(nn.Module):
    """``(i, n, d) -> (i, n, d)``: adds to each token what was learned for its cell; other grids resize the table."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(grid[0] * grid[1], dim))

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        return tokens.with_features(tokens.x + positions_at(self.weight.T.unflatten(1, self.grid), tokens))

    def init_weights(self) -> None:
        """Draws the table as published."""
        nn.init.trunc_normal_(self.weight, std=0.02)


def pooled_grid(side: int | Literal["auto"], grid: tuple[int, int], part: str) -> tuple[int, int]:
    """``side`` x ``side``, or half of each side of ``grid``, rounded up, for ``auto``.

    Raises:
        CompositionError: E-DIV when ``grid`` is smaller than the result.
    """
    if isinstance(side, str):
        return -(-grid[0] // 2), -(-grid[1] // 2)
    if not 1 <= side <= min(grid):
        raise CompositionError(
            "E-DIV",
            f"{part}: side={side} cannot be pooled from a grid of {grid[0]}x{grid[1]}",
            groups=("vision", "resampler"),
            fix=f"set resampler.side to auto or to 1..{min(grid)}",
        )
    return side, side


def learned_tokens(count: int, dim: int) -> nn.Parameter | None:
    """Room for ``count`` learned tokens; None for no token."""
    return nn.Parameter(torch.empty(count, dim)) if count else None


def append_tokens(tokens: VisualTokens, learned: Float[Tensor, "k d"] | None) -> VisualTokens:
    """``(i, n, d), (k, d) -> (i, n + k, d)``: the same tokens after those of every row; they stand for no patch and at
    the centre of the view, and the result forms no grid. None changes nothing.
    """
    if learned is None:
        return tokens
    return VisualTokens.cat([tokens, constants(learned, tokens).repeat(len(tokens.x))])


def appended(spec: TokenSpec, learned: Float[Tensor, "k d"] | None) -> TokenSpec:
    """The spec of what ``append_tokens`` makes."""
    return spec if learned is None else replace(spec, n=spec.n + len(learned), grid=None)
