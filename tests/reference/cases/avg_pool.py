"""resampler=avg_pool against bins averaged one by one."""

from __future__ import annotations

import torch
from torch import nn

from beni.resampler.avg_pool import AvgPool
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, side); the last two have bins that overlap
SHAPES = (((6, 4), 8, 2), ((5, 7), 6, 3), ((7, 4), 5, 4))


def bins(out, side):
    """[floor(i side / out), ceil((i + 1) side / out)) for each i."""
    return [(i * side // out, -(-(i + 1) * side // out)) for i in range(out)]


def pooled(maps, out):
    """``(i, rows, columns, d) -> (i, out rows * out columns, d)``."""
    rows, columns = maps.shape[1:3]
    cells = [
        maps[:, top:bottom, left:right].flatten(1, 2).mean(1)
        for top, bottom in bins(out[0], rows)
        for left, right in bins(out[1], columns)
    ]
    return torch.stack(cells, 1)


class Bins(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, tokens):
        return pooled(tokens.x.unflatten(1, tokens.grid), (self.side, self.side))


def ours(shape):
    grid, dim, side = shape
    return AvgPool(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), side=side)


CASES = [
    ReferenceCase(
        name="avg_pool",
        option="resampler=avg_pool",
        paper="arXiv 2405.20985",
        reference="loops over bins",
        shapes=SHAPES,
        build_ref=lambda shape: Bins(shape[2]),
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens),
    )
]
