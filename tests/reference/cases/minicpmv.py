"""resampler=minicpmv against transformers' MiniCPMV4_6ViTWindowAttentionMerger."""

from __future__ import annotations

import torch
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6ViTWindowAttentionMerger

from beni.resampler.minicpmv import MiniCpmV
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, heads, r)
SHAPES = (((4, 6), 24, 4, 2), ((6, 3), 20, 5, 3), ((2, 10), 16, 1, 2))
EXPANSION = 3


def merger(shape):
    _, dim, heads, r = shape
    config = MiniCPMV4_6VisionConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        intermediate_size=EXPANSION * dim,
        window_kernel_size=(r, r),
    )
    config._attn_implementation = "sdpa"  # eager computes its softmax in fp32, whatever the dtype
    return MiniCPMV4_6ViTWindowAttentionMerger(config)


def ours(shape):
    grid, dim, heads, r = shape
    tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
    return MiniCpmV(tokens, r=r, num_heads=heads, hidden=EXPANSION * dim * r * r)


def call_theirs(module, tokens):
    sizes = torch.tensor([tokens.grid] * len(tokens.x))
    return module(tokens.x.flatten(0, 1)[None], sizes)[0].unflatten(0, (len(tokens.x), -1))


NAMES = [
    ("layer_norm1", "token_norm"),
    ("self_attn", "attention"),
    ("out_proj", "o_proj"),
    ("pre_norm", "window_norm"),
    ("linear_1", "mlp.fc1"),
    ("linear_2", "mlp.fc2"),
]

CASES = [
    ReferenceCase(
        name="minicpmv",
        option="resampler=minicpmv",
        paper="MiniCPM-V 4.6 (OpenBMB, 2026)",
        reference="transformers.models.minicpmv4_6.modeling_minicpmv4_6.MiniCPMV4_6ViTWindowAttentionMerger",
        shapes=SHAPES,
        build_ref=merger,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=call_theirs,
        convert=lambda state: rename(state, NAMES),
    )
]
