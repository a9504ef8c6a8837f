"""resampler=molmo against transformers' Molmo2Adapter, with the windows that its image processor makes."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers.models.molmo2.configuration_molmo2 import Molmo2AdapterConfig
from transformers.models.molmo2.image_processing_molmo2 import arange_for_pooling
from transformers.models.molmo2.modeling_molmo2 import Molmo2Adapter

from beni.resampler.molmo import Molmo
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, layers, llm's width, r, heads, hidden width); windows that do not divide are smaller at the edges
SHAPES = (
    ((4, 6), 24, 2, 32, 2, 4, 40),
    ((5, 3), 20, 1, 16, 2, 5, 28),
    ((8, 7), 16, 3, 24, 3, 2, 52),
    ((6, 6), 8, 2, 12, 3, 1, 16),
)


def adapter(shape):
    grid, dim, layers, dim_out, r, heads, hidden = shape
    config = Molmo2AdapterConfig(
        vision_feature_layer=[*range(layers)],
        hidden_size=dim,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=dim // heads,
        intermediate_size=hidden,
        text_hidden_size=dim_out,
    )
    config._attn_implementation = "sdpa"  # eager computes its softmax in fp32, whatever the dtype
    module = Molmo2Adapter(config)
    module.windows = arange_for_pooling(torch.arange(grid[0] * grid[1]).view(grid), r, r)[0]
    return module


def ours(shape):
    grid, dim, layers, dim_out, r, heads, hidden = shape
    tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid, levels=(layers - 1) * dim)
    return Molmo(tokens, dim_out, r=r, num_heads=heads, hidden=hidden)


def inputs(shape, generator, dtype):
    grid, dim, layers, *_ = shape
    return grid_tokens(grid, layers * dim, generator, dtype)


def call_theirs(module, tokens):
    images, n, _ = tokens.x.shape
    windows = torch.cat([torch.where(module.windows < 0, -1, module.windows + i * n) for i in range(images)])
    return module(tokens.x, windows).last_hidden_state.unflatten(0, (images, -1))


def call_ours(module, tokens):
    """The first layer of the encoder is the features, the others come along with them."""
    dim = module.mlp.gate_proj.in_features
    levels = tokens.x[..., dim:]
    given = replace(tokens.with_features(tokens.x[..., :dim]), levels=levels if levels.shape[-1] else None)
    return module(given, StageContext()).x


CASES = [
    ReferenceCase(
        name="molmo",
        option="resampler=molmo",
        paper="arXiv 2409.17146",
        reference="transformers.models.molmo2.modeling_molmo2.Molmo2Adapter",
        shapes=SHAPES,
        build_ref=adapter,
        build_ours=ours,
        inputs=inputs,
        call_ref=call_theirs,
        call_ours=call_ours,
        convert=lambda state: rename(state, [("image_pooling_2d", "attention"), ("image_projector", "mlp")]),
    )
]
