"""The layer of a Spatial Vision Aggregator (Cambrian-1, arXiv 2406.16860): queries on a grid, each of which reads its
own cell of every source's grid.

Reference: ``VisionCrossAttentionLayer`` of Cambrian's ``vision_sampler.py``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.nn.attention import attend
from beni.nn.gates import open_mean
from beni.nn.grid import space_to_depth
from beni.nn.mlp import FeedForward
from beni.types import VisualTokens


def gathered(
    sources: list[VisualTokens], grid: tuple[int, int]
) -> tuple[Float[Tensor, "i 1 d"], list[Float[Tensor, "i m _ d"]], Float[Tensor, "i m k"] | None]:
    """What the queries on ``grid`` read: the mean of the first source's tokens, the tokens of each source by cells, and
    the gates of all of these, where there are any.
    """
    first = sources[0]
    if first.log_gate is None:
        overview = first.x.mean(1, keepdim=True)
    else:
        overview = open_mean(first.x, first.log_gate, lambda x: x.mean(1, keepdim=True))
    if all(source.log_gate is None for source in sources):
        return overview, [in_cells(source, grid) for source in sources], None
    gates = [source.size * 0.0 if source.log_gate is None else source.log_gate for source in sources]
    placed = [source.with_features(gate[..., None]) for source, gate in zip(sources, gates, strict=True)]
    log_gate = torch.cat([in_cells(source, grid)[..., 0] for source in placed], 2)
    return overview, [in_cells(source, grid) for source in sources], log_gate


def in_cells(source: VisualTokens, grid: tuple[int, int]) -> Float[Tensor, "i m k d"]:
    """``(i, n, d) -> (i, m, k, d)``: the tokens of each of ``m`` cells, which divide the source's grid.

    Raises:
        ValueError: when the source has no grid.
    """
    if source.grid is None:
        raise ValueError("cells were to be read of a source without a grid")
    rows, columns = source.grid[0] // grid[0], source.grid[1] // grid[1]
    return space_to_depth(source, (rows, columns)).x.unflatten(2, (rows * columns, -1))


class AggregatorLayer(nn.Module):
    """``(i, m, q), (i, 1, d), [(i, m, k, d)] -> (i, m, q)``: query and overview make the query that reads the cells;
    the result is to be added to the queries.

    Args:
        query_dim: width of the queries.
        dim: width of the sources, at which the layer works.
        num_heads: heads.
        keys: tokens in a cell of each source; a source with more than one has positions inside the cell.
    """

    def __init__(self, query_dim: int, dim: int, num_heads: int, keys: list[int]) -> None:
        super().__init__()
        self.overview_proj = nn.Linear(dim, dim, bias=False)
        self.input_proj = nn.Linear(query_dim + dim, dim, bias=False)
        self.positions = nn.ParameterDict(
            {str(j): nn.Parameter(torch.empty(k, dim)) for j, k in enumerate(keys) if k > 1}
        )
        self.attention = SourcesAttention(dim, num_heads, len(keys))
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, dim, query_dim, nn.GELU(), bias=False)

    def forward(
        self,
        queries: Float[Tensor, "i m q"],
        overview: Float[Tensor, "i 1 d"],
        cells: list[Float[Tensor, "i m _ d"]],
        log_gate: Float[Tensor, "i m k"] | None = None,
    ) -> Float[Tensor, "i m q"]:
        shown = self.overview_proj(overview).expand(-1, queries.shape[1], -1)
        asked = self.input_proj(torch.cat([queries, shown], -1))
        placed = [
            cell + self.positions[str(j)].to(cell.dtype) if str(j) in self.positions else cell
            for j, cell in enumerate(cells)
        ]
        return self.mlp(self.norm(asked + self.attention(asked, placed, log_gate)))

    def draw_positions(self) -> None:
        """Draws the positions inside cells as Cambrian does."""
        for positions in self.positions.values():
            nn.init.normal_(positions)


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
