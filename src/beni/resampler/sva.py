"""Spatial Vision Aggregator of Cambrian-1 (arXiv 2406.16860): each query reads its own cell of every encoder's grid.

Reference: ``VisionCrossAttentionLayer`` of Cambrian's ``vision_sampler.py``, and what ``cambrian_arch.py`` puts around.
No class of it can be loaded, so the tests derive its result cell by cell. Weights are drawn as there. Deviations: grids
need not be square; all groups of queries have one side, there each may have its own; there are no masks for the padding
of a picture to a square; the newline after each row is left to the views, and further layers inside the llm to the
fusion. With one encoder the tokens themselves are the only source. Gates weigh the overview as they weigh the tokens
that a query reads; a cell that is closed altogether gives zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost
from beni.errors import CompositionError
from beni.nn.attention import attend
from beni.nn.conv import init_as_torch
from beni.nn.gates import open_mean
from beni.nn.grid import grid_of, regrid, space_to_depth
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
            nn.ModuleList(AggregatorLayer(dim, num_heads, keys) for _ in range(depth)) for _ in range(groups)
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
        return replace(regrid(tokens, self.grid, self.proj.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        sources = tokens.sources or (tokens,)
        grids = tuple(source.grid for source in sources)
        if tokens.grid is None or grids != self.grids:
            raise ValueError(
                f"sva reads sources on grids of {self.grids}, it was given {grids}, tokens on {tokens.grid}"
            )
        seen = [source.with_features(project(source.x)) for source, project in zip(sources, self.inputs, strict=True)]
        first = seen[0]
        if first.log_gate is None:
            overview = first.x.mean(1, keepdim=True)
        else:
            overview = open_mean(first.x, first.log_gate, lambda x: x.mean(1, keepdim=True))
        cells = self._in_cells(seen)
        log_gate = None
        if any(source.log_gate is not None for source in seen):
            gates = [source.size * 0.0 if source.log_gate is None else source.log_gate for source in seen]
            placed = [source.with_features(gate[..., None]) for source, gate in zip(seen, gates, strict=True)]
            log_gate = torch.cat([cell[..., 0] for cell in self._in_cells(placed)], 2)
        made = []
        for query, layers in zip(self.queries, self.groups, strict=True):
            x = query.to(overview.dtype).expand(*cells[0].shape[:2], -1)
            for layer in layers:
                x = layer(x, overview, cells, log_gate)
            made.append(x)
        out = VisualTokens.dense(self.proj(torch.cat(made, -1)), self.grid)
        share = tokens.size.sum(1, keepdim=True) / out.x.shape[1]
        return replace(out, size=share.expand_as(out.size).to(torch.float32))

    def _in_cells(self, sources: list[VisualTokens]) -> list[Float[Tensor, "i m _ d"]]:
        return [
            space_to_depth(source, (rows, columns)).x.unflatten(2, (rows * columns, -1))
            for source, (rows, columns) in zip(sources, self.cells, strict=True)
        ]

    def init_weights(self) -> None:
        init_as_torch(self)
        nn.init.normal_(self.queries, std=self.proj.fc2.out_features**-0.5)
        for group in self.groups:
            for layer in group:
                for positions in layer.positions.values():
                    nn.init.normal_(positions)


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


class AggregatorLayer(nn.Module):
    """``(i, m, d), (i, 1, d), [(i, m, k, d)] -> (i, m, d)``: query and overview make the query that reads the cells.

    Args:
        dim: width.
        num_heads: heads.
        keys: tokens in a cell of each source; a source with more than one has positions inside the cell.
    """

    def __init__(self, dim: int, num_heads: int, keys: list[int]) -> None:
        super().__init__()
        self.overview_proj = nn.Linear(dim, dim, bias=False)
        self.input_proj = nn.Linear(2 * dim, dim, bias=False)
        self.positions = nn.ParameterDict(
            {str(j): nn.Parameter(torch.empty(k, dim)) for j, k in enumerate(keys) if k > 1}
        )
        self.attention = SourcesAttention(dim, num_heads, len(keys))
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, dim, dim, nn.GELU(), bias=False)

    def forward(
        self,
        queries: Float[Tensor, "i m d"],
        overview: Float[Tensor, "i 1 d"],
        cells: list[Float[Tensor, "i m _ d"]],
        log_gate: Float[Tensor, "i m k"] | None = None,
    ) -> Float[Tensor, "i m d"]:
        shown = self.overview_proj(overview).expand_as(queries)
        asked = self.input_proj(torch.cat([queries, shown], -1))
        placed = [
            cell + self.positions[str(j)].to(cell.dtype) if str(j) in self.positions else cell
            for j, cell in enumerate(cells)
        ]
        return queries + self.mlp(self.norm(asked + self.attention(asked, placed, log_gate)))


class SourcesAttention(nn.Module):
    """``(i, m, d), [(i, m, k, d)] -> (i, m, d)``: a query attends to its own cells; each source has its own keys."""

    def __init__(self, dim: int, num_heads: int, sources: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = normed_linear(dim)
        self.keys = nn.ModuleList(normed_linear(dim) for _ in range(sources))
        self.values = nn.ModuleList(normed_linear(dim) for _ in range(sources))
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        queries: Float[Tensor, "i m d"],
        cells: list[Float[Tensor, "i m _ d"]],
        log_gate: Float[Tensor, "i m k"] | None = None,
    ) -> Float[Tensor, "i m d"]:
        keys = torch.cat([project(cell) for project, cell in zip(self.keys, cells, strict=True)], 2)
        values = torch.cat([project(cell) for project, cell in zip(self.values, cells, strict=True)], 2)
        q, k, v = (self._heads(x) for x in (self.query(queries)[:, :, None], keys, values))
        read = attend(q, k, v, log_gate=None if log_gate is None else log_gate.flatten(0, 1))  # (i * m, h, 1, dh)
        return self.o_proj(read.flatten(1).view_as(queries))

    def _heads(self, x: Float[Tensor, "i m k d"]) -> Float[Tensor, "im h k dh"]:
        return x.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def normed_linear(dim: int) -> nn.Sequential:
    """Norm, then a linear layer without bias."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False))
