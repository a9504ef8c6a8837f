"""resampler=granite_docling against the coarse path of transformers' GraniteDoclingConnector."""

from __future__ import annotations

import torch
from transformers.models.granite_docling.configuration_granite_docling import GraniteDoclingVisionConfig
from transformers.models.granite_docling.modeling_granite_docling import (
    GraniteDoclingConnector,
    build_2d_sinusoidal_position_embedding,
)

from beni.resampler.granite_docling import GraniteDocling
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (side of the grid, width, llm's width, r); square grids only, it guesses the side
SHAPES = ((8, 6, 24, 4), (6, 9, 16, 2), (9, 5, 20, 3))


def connector(shape):
    side, dim, dim_out, r = shape
    config = GraniteDoclingVisionConfig(
        hidden_size=dim,
        num_attention_heads=1,
        image_size=2 * side,
        patch_size=2,
        out_hidden_size=dim_out,
        scale_factor=r,
        deepstack_visual_indexes=[],
        use_fine_route=False,
    )
    module = GraniteDoclingConnector(config)
    # its own are rounded to fp32, so 1e-10 would be out of reach
    table = build_2d_sinusoidal_position_embedding(side // r, side // r, dim_out, dtype=torch.float64)
    module.coarse.pos_embed.pos_embed = table.roll(dim_out // 2, -1)
    return module


def ours(shape):
    side, dim, dim_out, r = shape
    return GraniteDocling(TokenSpec(n=side**2, dim=dim, grid=(side, side)), dim_out, r=r)


NAMES = [
    ("ln_in", "token_norm"),
    ("coarse.projection", "fc1"),
    ("ln_mid", "norm"),
    ("mlp_fc2", "fc2"),
    ("ln_out", "out_norm"),
]

CASES = [
    ReferenceCase(
        name="granite_docling",
        option="resampler=granite_docling",
        paper="Granite Docling (model release)",
        reference="transformers.models.granite_docling.modeling_granite_docling.GraniteDoclingConnector",
        shapes=SHAPES,
        build_ref=connector,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens((shape[0], shape[0]), shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x, [])[0].unflatten(0, (len(tokens.x), -1)),
        convert=lambda state: rename(state, NAMES),
    )
]
