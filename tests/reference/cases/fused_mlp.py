"""connector=fused_mlp against the three layers of Prismatic's FusedMLPProjector, multiplied out."""

from __future__ import annotations

import torch
from torch import nn

from beni.connector.fused_mlp import FusedMlpConnector
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (width in, width out, expansion)
SHAPES = ((12, 40, 4), (20, 16, 4), (9, 26, 2))
GRID = (2, 3)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class ThreeLayers(nn.Module):
    def __init__(self, dim_in, dim_out, expansion):
        super().__init__()
        wide = expansion * dim_in
        self.projector = nn.Sequential(
            nn.Linear(dim_in, wide), nn.GELU(), nn.Linear(wide, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out)
        )

    def forward(self, x):
        first, _, second, _, third = self.projector
        x = gelu(torch.einsum("ind,ed->ine", x, first.weight) + first.bias)
        x = gelu(torch.einsum("ind,ed->ine", x, second.weight) + second.bias)
        return torch.einsum("ind,ed->ine", x, third.weight) + third.bias


def ours(shape):
    dim_in, dim_out, expansion = shape
    return FusedMlpConnector(TokenSpec(n=6, dim=dim_in, grid=GRID), dim_out, expansion=expansion, init_std=0.02)


def convert(state):
    place = {"0": "0", "2": "1", "4": "2"}
    named = {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
    return {f"layers.{place[name[0]]}{name[1:]}": tensor for name, tensor in named.items()}


CASES = [
    ReferenceCase(
        name="fused_mlp",
        option="connector=fused_mlp",
        paper="arXiv 2402.07865",
        reference="einsum",
        shapes=SHAPES,
        build_ref=lambda shape: ThreeLayers(*shape),
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(GRID, shape[0], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=convert,
    )
]
