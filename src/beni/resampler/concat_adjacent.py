"""Concatenation of neighbours in a row: the resampler of MiniGPT-v2 (arXiv 2310.09478), with ``connector=linear``.

Reference: ``encode_img`` of MiniGPT-4's ``minigpt_v2.py``, which regroups the raster; the tests do so too. Deviation:
where k does not divide the columns, the reference lets a token reach over into the next row; here that is an error.
"""

from __future__ import annotations

from typing import Annotated

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.grid import grid_of, regrid, space_to_depth
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class ConcatAdjacent(Stage):
    """``(i, rows * columns, d) -> (i, rows * columns/k, k d)``; no parameters.

    Args:
        tokens: spec of the incoming visual tokens.
        k: consecutive tokens of a row that become one; divides the columns of the grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``k`` does not divide its columns.
    """

    def __init__(self, tokens: TokenSpec, *, k: Annotated[int, AtLeast(1)]) -> None:
        super().__init__()
        self.k = k
        rows, columns = grid_of(tokens, "resampler=concat_adjacent")
        if k < 1 or columns % k:
            legal = [str(j) for j in range(1, columns + 1) if columns % j == 0]
            raise CompositionError(
                "E-DIV",
                f"resampler=concat_adjacent: k={k} does not divide the {columns} columns of the {rows}x{columns} grid",
                groups=("vision", "resampler"),
                fix=f"set resampler.k to one of {', '.join(legal)}",
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=concat_adjacent")
        return regrid(tokens, (rows, columns // self.k), self.k * tokens.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return space_to_depth(tokens, (1, self.k))

    def init_weights(self) -> None:
        """Nothing to draw."""
