"""resampler=gemma4 against transformers' Gemma4VisionPooler and Gemma4MultimodalEmbedder."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig, Gemma4VisionConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder, Gemma4VisionPooler

from beni.resampler.gemma3 import Gemma3
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, width out, r)
SHAPES = (((6, 9), 12, 24, 3), ((4, 2), 10, 16, 2), ((3, 6), 9, 20, 3))


class Projector(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, self.r = shape
        vision = Gemma4VisionConfig(hidden_size=dim, num_attention_heads=1, num_key_value_heads=1)
        self.pooler = Gemma4VisionPooler(vision)
        self.embedder = Gemma4MultimodalEmbedder(vision, Gemma4TextConfig(hidden_size=dim_out))

    def forward(self, x, grid):
        y, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
        places = torch.stack([column, y], -1).flatten(0, 1).expand(len(x), -1, -1)
        none = torch.zeros(places.shape[:2], dtype=torch.bool)
        pooled, _ = self.pooler(x, places, none, x.shape[1] // self.r**2)
        return self.embedder(pooled)


def ours(shape):
    grid, dim, dim_out, r = shape
    tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
    return Gemma3(tokens, dim_out, r=r, norm_weight=False, init_std=0.02)


def call_theirs(module, tokens):
    """Both classes round to fp32 inside, so 1e-10 would be out of reach."""
    wide = torch.Tensor.double if tokens.x.dtype == torch.float64 else torch.Tensor.float
    with patch.object(torch.Tensor, "float", wide):
        return module(tokens.x, tokens.grid)


CASES = [
    ReferenceCase(
        name="gemma4",
        option="resampler=gemma4",
        paper="Gemma 4 (Google, 2026)",
        reference="transformers.models.gemma4.modeling_gemma4.Gemma4MultimodalEmbedder",
        shapes=SHAPES,
        build_ref=Projector,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=call_theirs,
        convert=lambda state: {"proj.weight": state["embedder.embedding_projection.weight"]},
    )
]
