"""H-Reducer of DocOwl 1.5 (arXiv 2403.12895): text runs along rows, so neighbours in a row are merged, by convolution.

Reference: ``MplugDocOwlHReducerModel`` of mPLUG-DocOwl's ``visual_encoder.py``; the tests derive its result with loops
in fp64. Its norm ``ln_q`` is read by nothing and left out. Weights are drawn as torch does, the end token from N(0, 1),
as there. Deviation: the grid comes with the tokens and need not be square; the end token can be left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.conv import init_as_torch
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.rows import constants
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class HReducer(Stage):
    """``(i, rows * columns, d) -> (i, rows * columns/k, dim_out)``, one more with ``end_token``.

    The end token stands for no patch (size 0) and at the centre of its view.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        k: neighbours in a row that become one token; divides the columns of the grid.
        end_token: put one learned token after those of each view; the result then forms no grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``k`` does not divide its columns.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int, *, k: Annotated[int, AtLeast(1)], end_token: bool) -> None:
        super().__init__()
        self.k = k
        rows, columns = grid_of(tokens, "resampler=h_reducer")
        if k < 1 or columns % k:
            legal = [str(j) for j in range(1, columns + 1) if columns % j == 0]
            raise CompositionError(
                "E-DIV",
                f"resampler=h_reducer: k={k} does not divide the {columns} columns of the {rows}x{columns} grid",
                groups=("vision", "resampler"),
                fix=f"set resampler.k to one of {', '.join(legal)}",
            )
        dim = tokens.dim
        self.widen = nn.Conv2d(dim, k * dim, (1, k), stride=(1, k))
        self.reduce = nn.Conv2d(dim, dim, (1, k), stride=(1, k))
        self.proj = nn.Linear(dim, dim_out)
        self.end = nn.Parameter(torch.empty(dim_out)) if end_token else None

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=h_reducer")
        merged = replace(regrid(tokens, (rows, columns // self.k), self.proj.out_features), space="llm")
        return merged if self.end is None else replace(merged, n=merged.n + 1, grid=None)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        wide = F.gelu(self.widen(to_map(tokens)))  # (i, k * d, rows, columns/k)
        # a place's k * d channels are k neighbours of width d, whichever channels those were before
        images, _, rows, columns = wide.shape
        spread = wide.unflatten(1, (self.k, -1)).permute(0, 2, 3, 4, 1).reshape(images, -1, rows, columns * self.k)
        merged = from_map(self.reduce(spread), tokens)
        merged = merged.with_features(self.proj(merged.x))
        if self.end is None:
            return merged
        return VisualTokens.cat([merged, constants(self.end[None], merged).repeat(images)])

    def init_weights(self) -> None:
        init_as_torch(self)
        if self.end is not None:
            nn.init.normal_(self.end)
