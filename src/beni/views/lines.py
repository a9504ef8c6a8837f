"""Learned newlines: a vector at the end of each row of the grid, so that the llm can tell where the next row begins.

LLaVA-NeXT and Cambrian-1 (arXiv 2406.16860) have it; an image on an r x c grid then takes r * (c + 1) positions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from beni.errors import CompositionError
from beni.nn.rows import by_grid, stack, with_line_ends
from beni.types import TokenSpec, VisualTokens


def lines_of(row: TokenSpec, newline: Tensor | None, part: str) -> int:
    """Positions of a row of the llm's width, newlines included.

    Raises:
        CompositionError: E-GRID when there are newlines and the tokens form no grid.
    """
    if newline is None:
        return row.n
    if row.grid is None:
        raise CompositionError(
            "E-GRID",
            f"{part} with newline=true ends each row of a grid, but the tokens behind the resampler form none",
            groups=("views", "resampler"),
            fix="set views.newline=false",
        )
    return row.n + row.grid[0]


def with_newlines(tokens: VisualTokens, newline: Tensor | None) -> VisualTokens:
    """The tokens, each row of their grid ended; every image on a grid of its own where they differ."""
    if newline is None:
        return tokens
    if not tokens.grids:
        return replace(with_line_ends(tokens, newline), sources=tokens.sources)
    groups = by_grid(tokens)
    return stack([with_line_ends(dense, newline) for _, dense in groups], [places for places, _ in groups])


def new_line(dim: int, wanted: bool) -> torch.nn.Parameter | None:
    """Room for the vector."""
    return torch.nn.Parameter(torch.empty(dim)) if wanted else None


def draw(newline: Tensor | None) -> None:
    """Draws a newline as large as a text embedding of a fresh llm: N(0, 1/d)."""
    if newline is not None:
        torch.nn.init.normal_(newline, std=len(newline) ** -0.5)
