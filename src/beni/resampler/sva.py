"""Spatial Vision Aggregator of Cambrian-1 (arXiv 2406.16860): each query reads its own cell of every encoder's grid.

Reference: ``VisionCrossAttentionLayer`` of Cambrian's ``vision_sampler.py``, and what ``cambrian_arch.py`` puts around.
No class of it can be loaded, so the tests derive its result cell by cell. Weights are drawn as there. Deviations: grids
need not be square; all groups of queries have one side, there each may have its own; there are no masks for the padding
of a picture to a square; the newline after each row is left to the views, and further layers inside the llm to
``fusion=sva``, for which the projected sources go along. With one encoder the tokens themselves are the only source.
Gates weigh the overview as they weigh the tokens that a query reads; a cell that is closed altogether gives zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost
from beni.errors import CompositionError
from beni.nn.aggregator import AggregatorLayer, gathered
from beni.nn.conv import init_as_torch
from beni.nn.grid import grid_of, regrid
from beni.nn.mlp import FeedForward
from beni.nn.queries import head_dim_of
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=sva"


class Sva(Stage):
    """``(i, n, d) -> (i, side^2, dim_out)``: a query reads the tokens of its cell, of each of ``sources`` or of ``x``.

    A source's cell is its grid divided by that of the queries. The mean of the first source's tokens is shown to all
    queries.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        side: rows and columns of the queries (tokens), divides those of every source. ``auto`` is the coarsest source's
            grid where several encoders look, as published, and half of the grid where one does: one token a cell would
            leave attention nothing to choose.
        hidden_size: width to work at.
        depth: layers, at least 1.
        num_heads: heads; divides ``hidden_size``.
        groups: of queries, each with layers of its own and side by side in the channels at the end; at least 1.

    Raises:
        CompositionError: E-GRID when the tokens or a source form no dense grid, E-DIV when the grid of the queries does
            not divide that of a source, E-GATE when the tokens are gated and a source is not, E-HEADS when
            ``num_heads`` does not divide ``hidden_size``, E-DEPTH when ``depth`` or ``groups`` is below 1.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        side: Annotated[int, AtLeast(1)] | Literal["auto"],
        hidden_size: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_heads: Annotated[int, AtLeast(1)],
        groups: Annotated[int, AtLeast(1)],
    ) -> None:
        super().__init__()
        grid_of(tokens, PART)  # what a selector dropped must not come back through the sources
        sources = tokens.sources or (tokens,)
        self.grids = tuple(grid_of(source, PART) for source in sources)
        self.grid = query_grid(side, self.grids)
        self.cells = tuple((rows // self.grid[0], columns // self.grid[1]) for rows, columns in self.grids)
        for name, value in (("depth", depth), ("groups", groups)):
            if value < 1:
                raise CompositionError(
                    "E-DEPTH", f"{PART}: {name}={value}, expected at least 1", fix=f"set resampler.{name}=1 or more"
                )
        head_dim_of(hidden_size, num_heads, PART)
        dim, keys = hidden_size, [rows * columns for rows, columns in self.cells]
        self.inputs = nn.ModuleList(
            nn.Sequential(FeedForward(source.dim, dim, dim, nn.GELU(), bias=True), nn.LayerNorm(dim))
            for source in sources
        )
        self.queries = nn.Parameter(torch.empty(groups, dim))
        samplers = nn.ModuleList(
            nn.ModuleList(AggregatorLayer(dim, dim, num_heads, keys) for _ in range(depth)) for _ in range(groups)
        )
        self.groups = cast("list[list[AggregatorLayer]]", samplers)  # a ModuleList's items are typed as plain modules
        self.proj = FeedForward(groups * dim, dim_out, dim_out, nn.GELU(), bias=True)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        if tokens.gated and not all(source.gated for source in tokens.sources):
            raise CompositionError(
                "E-GATE",
                f"{PART} reads the tokens of each encoder, and the gates are on what was made of them",
                groups=("selector", "resampler"),
                fix="set resampler=perceiver, or a selector without gates",
            )
        width = self.queries.shape[1]
        sources = tuple(
            TokenSpec(n=source.n, dim=width, grid=source.grid, gated=source.gated)
            for source in tokens.sources or (tokens,)
        )
        return replace(regrid(tokens, self.grid, self.proj.fc2.out_features), space="llm", sources=sources)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        sources = tokens.sources or (tokens,)
        grids = tuple(source.grid for source in sources)
        if tokens.grid is None or grids != self.grids:
            raise ValueError(
                f"sva reads sources on grids of {self.grids}, it was given {grids}, tokens on {tokens.grid}"
            )
        seen = [projected(source, project(source.x)) for source, project in zip(sources, self.inputs, strict=True)]
        overview, cells, log_gate = gathered(seen, self.grid)
        made = []
        for query, layers in zip(self.queries, self.groups, strict=True):
            x = query.to(overview.dtype).expand(*cells[0].shape[:2], -1)
            for layer in layers:
                x = x + layer(x, overview, cells, log_gate)
            made.append(x)
        out = VisualTokens.dense(self.proj(torch.cat(made, -1)), self.grid)
        share = tokens.size.sum(1, keepdim=True) / out.x.shape[1]
        return replace(out, size=share.expand_as(out.size).to(torch.float32), sources=tuple(seen))

    def init_weights(self) -> None:
        init_as_torch(self)
        nn.init.normal_(self.queries, std=self.proj.fc2.out_features**-0.5)
        for group in self.groups:
            for layer in group:
                layer.draw_positions()


def query_grid(side: int | Literal["auto"], grids: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The grid of the queries that read sources on ``grids``.

    Raises:
        CompositionError: E-DIV when it does not divide one of them.
    """
    coarsest = min(grids, key=lambda grid: grid[0] * grid[1])
    if not isinstance(side, str):
        grid = (side, side)
    elif len(grids) > 1:
        grid = coarsest
    else:
        grid = (max(1, coarsest[0] // 2), max(1, coarsest[1] // 2))
    legal = [j for j in range(1, min(coarsest) + 1) if all(rows % j == columns % j == 0 for rows, columns in grids)]
    for rows, columns in grids:
        if min(grid) < 1 or rows % grid[0] or columns % grid[1]:
            raise CompositionError(
                "E-DIV",
                f"{PART}: side={side}, {grid[0]}x{grid[1]} queries do not divide a grid of {rows}x{columns} tokens",
                groups=("vision", "resampler"),
                fix=f"set resampler.side to one of {', '.join(map(str, legal))}, or bring the encoders to other grids",
            )
    return grid


def projected(source: VisualTokens, x: Float[Tensor, "i n e"]) -> VisualTokens:
    """A source's tokens with other features, and their gates; nothing else of it goes on."""
    return replace(VisualTokens.fresh(x, source.mask, source.yx, source.size, source.grid), log_gate=source.log_gate)
