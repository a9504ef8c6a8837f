"""resampler=aria against transformers' AriaProjector."""

from __future__ import annotations

from functools import partial

from transformers import AriaConfig
from transformers.models.aria.modeling_aria import AriaProjector

from beni.resampler.aria import Aria
from beni.types import TokenSpec
from reference.cases.perceiver import features
from reference.convert import from_multihead, rename
from reference.harness import ReferenceCase

# (width, llm's width, queries, heads, tokens)
SHAPES = ((24, 40, 5, 4, 21), (16, 16, 7, 1, 12), (30, 12, 3, 3, 35))


def projector(shape):
    dim, dim_out, queries, heads, n = shape
    config = AriaConfig(
        vision_config={"model_type": "idefics3_vision", "hidden_size": dim, "num_attention_heads": heads},
        text_config={"hidden_size": dim_out, "num_attention_heads": 1},
        projector_patch_to_query_dict={n: queries},
    )
    return AriaProjector(config)


def ours(shape):
    dim, dim_out, queries, heads, n = shape
    return Aria(TokenSpec(n=n, dim=dim), dim_out, num_queries=queries, num_heads=heads)


def convert(state):
    pairs = [
        ("cross_attn.layer_norm_kv", "context_norm"),
        ("cross_attn.layer_norm", "query_norm"),
        ("layer_norm", "norm"),
        ("cross_attn.", ""),
        ("feed_forward.linear_in", "mlp.fc1"),
        ("feed_forward.linear_out", "mlp.fc2"),
    ]
    state = rename(from_multihead(state, "cross_attn.multihead_attn"), pairs)
    return {("queries" if name == "query" else name): tensor for name, tensor in state.items()}


CASES = [
    ReferenceCase(
        name=f"aria {kind}",
        option="resampler=aria",
        paper="arXiv 2410.05993",
        reference="transformers.models.aria.modeling_aria.AriaProjector",
        shapes=SHAPES,
        build_ref=projector,
        build_ours=ours,
        inputs=partial(features, masked=kind == "masked"),
        call_ref=lambda module, tokens: module(tokens.x, ~tokens.mask),  # torch's attention masks what is True
        convert=convert,
    )
    for kind in ("dense", "masked")
]
