"""PerceptionLM's projector (arXiv 2504.13180): an MLP on every token, then average pooling; ends at the llm's width.

Reference: ``transformers`` ``PerceptionLMMultiModalProjector``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its
weights. The other order, pooling before the MLP, is ``resampler=avg_pool``: cheaper, and not the same. Deviation: grids
need not be square. Sides that ``ratio`` does not divide are pooled in overlapping bins, as there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.errors import CompositionError
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.mlp import FeedForward
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PerceptionLm(Stage):
    """``(i, rows * columns, d) -> (i, (rows // ratio) * (columns // ratio), dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        ratio: by which both sides of the grid shrink, rounded down; 1 pools nothing.
        init_std: standard deviation of the normal draw of the weights.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``ratio`` exceeds one of its sides.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        ratio: Annotated[int, AtLeast(1)],
        init_std: Annotated[float, AtLeast(0), Example("0.02")],
    ) -> None:
        super().__init__()
        self.ratio, self.init_std = ratio, init_std
        rows, columns = grid_of(tokens, "resampler=perception_lm")
        if not 1 <= ratio <= min(rows, columns):
            raise CompositionError(
                "E-DIV",
                f"resampler=perception_lm: ratio={ratio} leaves nothing of a {rows}x{columns} grid of visual tokens",
                groups=("vision", "resampler"),
                fix=f"set resampler.ratio to 1..{min(rows, columns)}",
            )
        self.mlp = FeedForward(tokens.dim, dim_out, dim_out, nn.GELU(), bias=True)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=perception_lm")
        dim_out = self.mlp.fc2.out_features
        return replace(regrid(tokens, (rows // self.ratio, columns // self.ratio), dim_out), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        maps = to_map(tokens.with_features(self.mlp(tokens.x)))
        rows, columns = maps.shape[2:]
        return from_map(F.adaptive_avg_pool2d(maps, (rows // self.ratio, columns // self.ratio)), tokens)

    def init_weights(self) -> None:
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)
