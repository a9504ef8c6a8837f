"""resampler=ldpv2 against MobileVLM's LDPNetV2Projector, multiplied out."""

from __future__ import annotations

from torch import nn

from beni.resampler.ldpv2 import Ldpv2
from beni.types import TokenSpec
from reference.cases.avg_pool import pooled
from reference.cases.ldp import depthwise, gelu
from reference.harness import ReferenceCase, grid_tokens, renamed

# (grid, width in, width out, side, grid of the result)
SHAPES = (((6, 4), 12, 24, 2, (2, 2)), ((5, 7), 10, 16, "auto", (3, 4)), ((6, 8), 9, 20, "auto", (3, 4)))


class LdpV2(nn.Module):
    """By the names of MobileVLM's weights."""

    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, _, self.out = shape
        self.mlp = nn.Sequential(nn.Linear(dim, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out))
        self.peg = nn.Sequential(nn.Conv2d(dim_out, dim_out, 3, groups=dim_out))

    def forward(self, x):
        first, _, second = self.mlp
        x = gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
        small = pooled(x, self.out).unflatten(1, self.out)
        return (small + depthwise(small, self.peg[0].weight, 1) + self.peg[0].bias).flatten(1, 2)


def ours(shape):
    grid, dim, dim_out, side, _ = shape
    return Ldpv2(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), dim_out, side=side)


CASES = [
    ReferenceCase(
        name="ldpv2",
        option="resampler=ldpv2",
        paper="arXiv 2402.03766",
        reference="loops over bins and shifted copies",
        shapes=SHAPES,
        build_ref=LdpV2,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x.unflatten(1, tokens.grid)),
        convert=renamed(mlp__0="mlp.fc1", mlp__2="mlp.fc2", peg__0="peg"),
    )
]
