"""resampler=gemma3 against transformers' Gemma3MultiModalProjector, which takes square grids only."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from transformers import Gemma3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from beni.resampler.gemma3 import Gemma3
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (side of the grid, width in, width out, r)
SHAPES = ((8, 12, 24, 4), (6, 10, 16, 2), (6, 9, 20, 3))


def wide_norm(norm, x):
    """Gemma's norm as torch has it: its own rounds to fp32 inside, so 1e-10 would be out of reach."""
    return F.rms_norm(x, norm.weight.shape, 1 + norm.weight, norm.eps)


def theirs(shape):
    side, dim, dim_out, r = shape
    vision = {"hidden_size": dim, "num_attention_heads": 1, "image_size": 2 * side, "patch_size": 2}
    text = {"hidden_size": dim_out, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=(side // r) ** 2)
    module = Gemma3MultiModalProjector(config)
    module.mm_soft_emb_norm.forward = partial(wide_norm, module.mm_soft_emb_norm)
    return module


def ours(shape):
    side, dim, dim_out, r = shape
    return Gemma3(TokenSpec(n=side**2, dim=dim, grid=(side, side)), dim_out, r=r, norm_weight=True, init_std=0.02)


CASES = [
    ReferenceCase(
        name="gemma3",
        option="resampler=gemma3",
        paper="arXiv 2503.19786",
        reference="transformers.models.gemma3.modeling_gemma3.Gemma3MultiModalProjector",
        shapes=SHAPES,
        build_ref=theirs,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens((shape[0], shape[0]), shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=lambda state: {
            "norm.weight": 1 + state["mm_soft_emb_norm.weight"],
            "proj.weight": state["mm_input_projection_weight"].T,
        },
    )
]
