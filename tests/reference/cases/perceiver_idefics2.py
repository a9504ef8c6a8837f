"""resampler=perceiver_idefics2 against transformers' Idefics2Connector: projection, then perceiver."""

from __future__ import annotations

from functools import partial

from transformers import Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector, Idefics2RMSNorm

from beni.resampler.perceiver_idefics2 import PerceiverIdefics2
from beni.types import TokenSpec
from reference.cases.perceiver import features, wide_norm
from reference.convert import rename
from reference.harness import ReferenceCase

# (width, llm's width, hidden width of the projection, depth, latents, heads, kv heads, head width, tokens)
SHAPES = (
    (24, 32, 112, 1, 5, 4, 1, 6, 21),
    (20, 16, 40, 2, 6, 6, 2, 10, 12),
    (16, 24, 84, 3, 4, 3, 3, 8, 10),
)


def connector(shape):
    dim, dim_out, hidden, depth, latents, heads, kv, head_dim, _ = shape
    config = Idefics2Config(
        vision_config={"hidden_size": dim},
        text_config={"model_type": "mistral", "hidden_size": dim_out, "intermediate_size": hidden},
        perceiver_config={
            "hidden_size": dim_out,
            "resampler_depth": depth,
            "resampler_n_latents": latents,
            "resampler_n_heads": heads,
            "num_key_value_heads": kv,
            "resampler_head_dim": head_dim,
        },
    )
    config.perceiver_config._attn_implementation = "sdpa"  # eager computes its softmax in fp32, whatever the dtype
    module = Idefics2Connector(config)
    for norm in module.modules():
        if isinstance(norm, Idefics2RMSNorm):
            norm.forward = partial(wide_norm, norm)
    return module


def ours(shape):
    dim, dim_out, hidden, depth, latents, heads, kv, head_dim, n = shape
    return PerceiverIdefics2(
        TokenSpec(n=n, dim=dim),
        dim_out,
        expansion=hidden / dim_out,
        depth=depth,
        num_latents=latents,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        concat_latents=True,
        attention_dropout=0.0,
    )


CASES = [
    ReferenceCase(
        name=f"perceiver_idefics2 {kind}",
        option="resampler=perceiver_idefics2",
        paper="arXiv 2405.02246",
        reference="transformers.models.idefics2.modeling_idefics2.Idefics2Connector",
        shapes=SHAPES,
        build_ref=connector,
        build_ours=ours,
        inputs=partial(features, masked=kind == "masked"),
        call_ref=lambda module, tokens: module(tokens.x, tokens.mask),
        convert=lambda state: rename(
            state, [("modality_projection", "projection"), ("perceiver_resampler", "perceiver")]
        ),
    )
    for kind in ("dense", "masked")
]
