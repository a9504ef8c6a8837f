"""connector=gemma3n against transformers' Gemma3nMultimodalEmbedder on features."""

from __future__ import annotations

from functools import partial

from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig, Gemma3nVisionConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder, Gemma3nRMSNorm

from beni.connector.gemma3n import Gemma3nConnector
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (width in, width out)
SHAPES = ((24, 40), (40, 24), (18, 20))
GRID = (2, 3)


def wide_norm(norm, x):
    """Gemma's norm as torch has it: its own rounds to fp32 inside, so 1e-10 would be out of reach."""
    normed = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return normed * norm.weight if norm.with_scale else normed


def theirs(shape):
    dim, dim_out = shape
    vision = Gemma3nVisionConfig(hidden_size=dim, vocab_size=4, rms_norm_eps=1e-6)
    module = Gemma3nMultimodalEmbedder(vision, Gemma3nTextConfig(hidden_size=dim_out, num_attention_heads=1))
    for norm in module.modules():
        if isinstance(norm, Gemma3nRMSNorm):
            norm.forward = partial(wide_norm, norm)
    return module


CASES = [
    ReferenceCase(
        name="gemma3n",
        option="connector=gemma3n",
        paper="Gemma 3n (Google, 2025)",
        reference="transformers.models.gemma3n.modeling_gemma3n.Gemma3nMultimodalEmbedder",
        shapes=SHAPES,
        build_ref=theirs,
        build_ours=lambda shape: Gemma3nConnector(TokenSpec(n=6, dim=shape[0], grid=GRID), shape[1], init_std=0.02),
        inputs=lambda shape, generator, dtype: grid_tokens(GRID, shape[0], generator, dtype),
        call_ref=lambda module, tokens: module(inputs_embeds=tokens.x),
        convert=lambda state: {
            "norm.weight": state["soft_embedding_norm.weight"],
            "proj.weight": state["embedding_projection.weight"],
        },
    )
]
