"""resampler=glm4v against the end of transformers' Glm4vVisionModel: its convolution and Glm4vVisionPatchMerger."""

from __future__ import annotations

from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionPatchMerger

from beni.resampler.glm4v import Glm4v
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, llm's width, r, hidden width)
SHAPES = (((4, 6), 6, 24, 2, 40), ((6, 3), 4, 20, 3, 12), ((2, 10), 10, 16, 2, 28))


class Merger(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, r, hidden = shape
        self.downsample = nn.Conv2d(dim, dim_out, kernel_size=r, stride=r)
        self.merger = Glm4vVisionPatchMerger(dim_out, hidden, "silu")

    def forward(self, x, grid):
        maps = x.transpose(1, 2).unflatten(2, grid)
        return self.merger(self.downsample(maps).flatten(2).transpose(1, 2))


def ours(shape):
    grid, dim, dim_out, r, hidden = shape
    return Glm4v(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), dim_out, r=r, hidden=hidden)


NAMES = [
    ("merger.proj", "proj"),
    ("merger.post_projection_norm", "norm"),
    ("merger.", "mlp."),
]


def convert(state):
    kernel = state["downsample.weight"].permute(0, 2, 3, 1).flatten(1)  # row, column, channel
    return rename(state | {"downsample.weight": kernel}, NAMES)


CASES = [
    ReferenceCase(
        name="glm4v",
        option="resampler=glm4v",
        paper="arXiv 2507.01006",
        reference="transformers.models.glm4v.modeling_glm4v.Glm4vVisionPatchMerger",
        shapes=SHAPES,
        build_ref=Merger,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x, tokens.grid),
        convert=convert,
    )
]
