"""Molmo's pooling (arXiv 2409.17146): the mean of each window of patches attends to them, then a gated layer.

Reference: ``transformers`` ``Molmo2Adapter`` with the windows of its image processor, equal to 1e-5 in fp32 and 1e-10
in fp64 with its weights. Published: windows of 2x2, 16 heads, and two layers of the vision encoder side by side in the
channels (``vision.levels``), of which the attention makes one. Where a window does not divide a side, the first and the
last windows are smaller, as there. Deviation: gates weigh the mean as they weigh the patches that it reads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.nn.attention import GroupedQueryAttention
from beni.nn.gates import open_mean
from beni.nn.grid import blocks_of, grid_of, regrid, to_map
from beni.nn.mlp import SwiGLU
from beni.nn.queries import draw_layers, head_dim_of
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=molmo"


class Molmo(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``, sides rounded up.

    Args:
        tokens: spec of the incoming visual tokens; ``levels`` are read beside the features where they come along.
        dim_out: width of the llm.
        r: rows and columns of a window (tokens).
        num_heads: heads; must divide the width of the tokens.
        hidden: width of the gated layer; ``auto`` is ``4 * dim_out``. Published is that of the llm's own.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-HEADS when ``num_heads`` does not divide the
            width.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        r: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        hidden: Annotated[int, AtLeast(1)] | Literal["auto"],
    ) -> None:
        super().__init__()
        grid_of(tokens, PART)
        self.r, self.levels = r, tokens.levels
        head_dim = head_dim_of(tokens.dim, num_heads, PART)
        wide = tokens.dim + tokens.levels
        self.attention = GroupedQueryAttention(wide, num_heads, num_heads, head_dim, dim_out=tokens.dim, bias=True)
        self.mlp = SwiGLU(tokens.dim, 4 * dim_out if isinstance(hidden, str) else hidden, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, PART)
        grid = (math.ceil(rows / self.r), math.ceil(columns / self.r))
        return replace(regrid(tokens, grid, self.mlp.down_proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        patches = self._windows(self._features(tokens), tokens)  # (i, m, r * r, d + l)
        facts = torch.cat([torch.ones_like(tokens.size)[..., None], tokens.size[..., None], tokens.yx], -1)
        facts = self._windows(facts, tokens)
        real = facts[..., :1]  # 0 where a window reaches over the edge
        count, size, yx = facts.sum(2).split((1, 1, 2), -1)

        def mean(values: Tensor) -> Tensor:
            return (values * real.to(values.dtype)).sum(2) / count.to(values.dtype)

        gates = None if tokens.log_gate is None else self._windows(tokens.log_gate[..., None], tokens)[..., 0]
        queries = mean(patches) if gates is None else open_mean(patches, gates, mean)
        read = self.attention(
            queries.flatten(0, 1)[:, None],
            patches.flatten(0, 1),
            real[..., 0].flatten(0, 1) > 0,
            log_gate=None if gates is None else gates.flatten(0, 1),
        )
        rows, columns = to_map(tokens).shape[2:]
        dense = VisualTokens.dense(
            self.mlp(read).view(*queries.shape[:2], -1), (math.ceil(rows / self.r), math.ceil(columns / self.r))
        )
        return replace(dense, yx=yx / count, size=size[..., 0])

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))

    def _features(self, tokens: VisualTokens) -> Float[Tensor, "i n _"]:
        """The layers of the encoder side by side.

        Raises:
            ValueError: when the further ones that the spec told of are not there.
        """
        if not self.levels:
            return tokens.x
        if tokens.levels is None:
            raise ValueError(f"{self.levels} channels of further layers were to come along, and none came")
        return torch.cat([tokens.x, tokens.levels], -1)

    def _windows(self, values: Float[Tensor, "i n c"], tokens: VisualTokens) -> Float[Tensor, "i m k c"]:
        """What stands in each window, zeros where it reaches over the edge."""
        maps = to_map(tokens.with_features(values))
        down, right = (-side % self.r for side in maps.shape[2:])
        edges = (right // 2, right - right // 2, down // 2, down - down // 2)
        return blocks_of(F.pad(maps, edges), (self.r, self.r))
