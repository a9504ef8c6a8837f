"""Lightweight downsample projector of MobileVLM V2 (arXiv 2402.03766): MLP, pooling, positions from a convolution.

Reference: ``LDPNetV2Projector`` of MobileVLM's ``vision_projector.py``; the tests assemble it from elementary
operations. The convolution is a depthwise 3x3 with residual: its zeros at the border tell a token where it stands
(PEG, arXiv 2102.10882). Weights are drawn as torch does, as there. Deviations: the result's side is a key, there
always 12; grids need not be square.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.conv import init_as_torch
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.mlp import FeedForward
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class Ldpv2(Stage):
    """``(i, rows * columns, d) -> (i, side^2, dim_out)``; with ``auto``, half the rows and half the columns.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        side: rows and columns of the result (tokens), at most those of the grid; ``auto`` is half of each, rounded up.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when it is smaller than the result.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int, *, side: Annotated[int, AtLeast(1)] | Literal["auto"]) -> None:
        super().__init__()
        self.side = side
        rows, columns = grid_of(tokens, "resampler=ldpv2")
        if not isinstance(side, str) and not 1 <= side <= min(rows, columns):
            raise CompositionError(
                "E-DIV",
                f"resampler=ldpv2: side={side} cannot be pooled from a grid of {rows}x{columns}",
                groups=("vision", "resampler"),
                fix=f"set resampler.side to auto or to 1..{min(rows, columns)}",
            )
        self.mlp = FeedForward(tokens.dim, dim_out, dim_out, nn.GELU(), bias=True)
        self.peg = nn.Conv2d(dim_out, dim_out, 3, padding=1, groups=dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid = self._pooled(grid_of(tokens, "resampler=ldpv2"))
        return replace(regrid(tokens, grid, self.mlp.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(tokens.with_features(self.mlp(tokens.x)))
        pooled = F.adaptive_avg_pool2d(features, self._pooled((features.shape[2], features.shape[3])))
        return from_map(pooled + self.peg(pooled), tokens)

    def init_weights(self) -> None:
        init_as_torch(self)

    def _pooled(self, grid: tuple[int, int]) -> tuple[int, int]:
        if isinstance(self.side, str):
            return -(-grid[0] // 2), -(-grid[1] // 2)
        return self.side, self.side
