"""resampler=m3 against averages taken cell by cell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from beni.resampler.m3 import M3
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

SHAPES = (((8, 8), 6, 10, 2), ((6, 9), 5, 8, 3), ((4, 4), 7, 12, 4))
"""(grid, width in, width out, factor)."""


class Matryoshka(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, self.factor = shape
        self.first, self.second = nn.Linear(dim, dim_out), nn.Linear(dim_out, dim_out)

    def forward(self, x, grid):
        made = self.second(F.gelu(self.first(x))).unflatten(1, grid)
        f, cells = self.factor, []
        for top in range(0, grid[0], f):
            for left in range(0, grid[1], f):
                cells.append(made[:, top : top + f, left : left + f].mean((1, 2)))
        return torch.stack(cells, 1)


def ours(shape):
    grid, dim, dim_out, factor = shape
    tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
    return M3(tokens, dim_out, factors="auto", factor=factor, train="fixed", init_std=0.02)


CASES = [
    ReferenceCase(
        name="m3",
        option="resampler=m3",
        paper="arXiv 2405.17430",
        reference="means of cells",
        shapes=SHAPES,
        build_ref=Matryoshka,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x, tokens.grid),
        convert=lambda state: {
            f"mlp.{ {'first': 'fc1', 'second': 'fc2'}[name.partition('.')[0]] }.{name.partition('.')[2]}": tensor
            for name, tensor in state.items()
        },
    )
]
