"""resampler=ernie against transformers' Ernie4_5_VLMoeVariableResolutionResamplerModel on one frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.models.ernie4_5_vl_moe.configuration_ernie4_5_vl_moe import Ernie4_5_VLMoeConfig
from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import Ernie4_5_VLMoeVariableResolutionResamplerModel

from beni.resampler.ernie import Ernie
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, llm's width, r)
SHAPES = (((4, 6), 6, 24, 2), ((6, 3), 4, 20, 3), ((2, 10), 10, 16, 2))


def theirs(shape):
    _, dim, dim_out, r = shape
    config = Ernie4_5_VLMoeConfig(
        vision_config={"hidden_size": dim, "num_heads": 1, "spatial_merge_size": r},
        text_config={"hidden_size": dim_out, "num_attention_heads": 1, "num_key_value_heads": 1},
    )
    module = Ernie4_5_VLMoeVariableResolutionResamplerModel(config)
    norm = module.after_norm  # rounds to fp32 inside, so 1e-10 would be out of reach
    norm.forward = lambda x: F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    module.r = r
    return module


def ours(shape):
    grid, dim, dim_out, r = shape
    return Ernie(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), dim_out, r=r)


def call_theirs(module, tokens):
    """Its processor orders the patches so that those of a block follow each other."""
    images, _, dim = tokens.x.shape
    rows, columns = (side // module.r for side in tokens.grid)
    blocks = tokens.x.view(images, rows, module.r, columns, module.r, dim).permute(0, 1, 3, 2, 4, 5)
    grids = torch.tensor([[1, *tokens.grid]] * images)
    return module(blocks.reshape(-1, dim), grids).unflatten(0, (images, -1))


NAMES = [
    ("spatial_linear.ln", "spatial_norm"),
    ("temporal_linear.ln", "temporal_norm"),
    ("spatial_linear", "spatial"),
    ("temporal_linear", "temporal"),
    ("after_norm", "norm"),
    ("mlp.", "proj."),
]


def convert(state):
    """A picture is both of two frames."""
    first, second = state["temporal_linear.fc1.weight"].chunk(2, 1)
    return rename(state | {"temporal_linear.fc1.weight": first + second}, NAMES)


CASES = [
    ReferenceCase(
        name="ernie",
        option="resampler=ernie",
        paper="ERNIE 4.5 (Baidu, 2025)",
        reference=(
            "transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe.Ernie4_5_VLMoeVariableResolutionResamplerModel"
        ),
        shapes=SHAPES,
        build_ref=theirs,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=call_theirs,
        convert=convert,
    )
]
