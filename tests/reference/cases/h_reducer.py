"""resampler=h_reducer against mPLUG-DocOwl's H-Reducer, token by token."""

from __future__ import annotations

import torch
from torch import nn

from beni.resampler.h_reducer import HReducer
from beni.types import TokenSpec
from reference.cases.ldp import gelu
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, width out, k, end token)
SHAPES = (((3, 8), 6, 24, 4, True), ((4, 4), 5, 16, 2, True), ((2, 9), 7, 20, 3, False))


class Loops(nn.Module):
    """By the names of the published weights. A token is made from k neighbours: each of the k groups of channels that
    the first convolution gives is a neighbour to the second.
    """

    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, self.k, end = shape
        self.reducer_before = nn.Sequential(nn.Conv2d(dim, self.k * dim, (1, self.k)), nn.GELU())
        self.reducer = nn.Conv2d(dim, dim, (1, self.k))
        self.visual_fc = nn.Linear(dim, dim_out)
        if end:
            self.vit_eos = nn.Parameter(torch.empty(1, 1, dim_out))

    def forward(self, x, grid):
        dim = x.shape[2]
        widen, reduce, proj = self.reducer_before[0], self.reducer, self.visual_fc
        tokens = []
        for row in range(grid[0]):
            for left in range(0, grid[1], self.k):
                at = [x[:, row * grid[1] + left + j] for j in range(self.k)]
                wide = sum(token @ widen.weight[:, :, 0, j].T for j, token in enumerate(at)) + widen.bias
                parts = gelu(wide).split(dim, -1)
                merged = sum(part @ reduce.weight[:, :, 0, j].T for j, part in enumerate(parts)) + reduce.bias
                tokens.append(merged @ proj.weight.T + proj.bias)
        ends = [end[0].expand(len(x), -1) for name, end in self.named_parameters() if name == "vit_eos"]
        return torch.stack([*tokens, *ends], 1)


def ours(shape):
    grid, dim, dim_out, k, end = shape
    return HReducer(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), dim_out, k=k, end_token=end)


def convert(state):
    names = {"reducer_before": "widen", "reducer": "reduce", "visual_fc": "proj", "vit_eos": "end"}
    out = {}
    for name, tensor in state.items():
        first, _, rest = name.replace("reducer_before.0", "reducer_before").partition(".")
        out[f"{names[first]}.{rest}".rstrip(".")] = tensor.flatten() if first == "vit_eos" else tensor
    return out


CASES = [
    ReferenceCase(
        name="h_reducer",
        option="resampler=h_reducer",
        paper="arXiv 2403.12895",
        reference="loops over tokens",
        shapes=SHAPES,
        build_ref=Loops,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x, tokens.grid),
        convert=convert,
    )
]
