"""resampler=concat_adjacent with connector=linear against MiniGPT-v2's regrouping of the raster."""

from __future__ import annotations

from torch import nn

from beni.connector.mlp import MlpConnector
from beni.resampler.concat_adjacent import ConcatAdjacent
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens, renamed

# (grid, width in, width out, k)
SHAPES = (((4, 4), 8, 24, 4), ((3, 6), 6, 20, 2), ((5, 9), 7, 16, 3))


class MiniGptV2(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, self.k = shape
        self.llama_proj = nn.Linear(self.k * dim, dim_out)

    def forward(self, x):
        images, n, dim = x.shape
        return self.llama_proj(x.reshape(images, n // self.k, self.k * dim))


class Pair(nn.Module):
    def __init__(self, shape):
        super().__init__()
        grid, dim, dim_out, k = shape
        tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
        self.resampler = ConcatAdjacent(tokens, k=k)
        self.connector = MlpConnector(
            self.resampler.spec(tokens),
            dim_out,
            depth=1,
            hidden="auto",
            bias=True,
            norm="none",
            dropout=0.0,
            init_std=0.02,
        )

    def forward(self, tokens, context):
        return self.connector(self.resampler(tokens, context), context)


CASES = [
    ReferenceCase(
        name="concat_adjacent",
        option="resampler=concat_adjacent",
        paper="arXiv 2310.09478",
        reference="torch.Tensor.reshape",
        shapes=SHAPES,
        build_ref=MiniGptV2,
        build_ours=Pair,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=renamed(llama_proj="connector.layers.0"),
    )
]
