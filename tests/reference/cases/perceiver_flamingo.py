"""Flamingo's perceiver against transformers' Evolla (the same network, for proteins) and IDEFICS."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers import EvollaConfig, IdeficsConfig
from transformers.models.evolla.modeling_evolla import EvollaSequenceCompressorResampler
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from beni.resampler.perceiver_flamingo import PerceiverFlamingo
from beni.types import TokenSpec
from reference.cases.perceiver import features
from reference.convert import rename, split_projections
from reference.harness import ReferenceCase

# (width, depth, latents, heads, head width, tokens)
SHAPES = ((24, 1, 5, 4, 6, 21), (16, 3, 7, 3, 10, 12), (32, 2, 4, 2, 8, 35))


def evolla(shape):
    dim, depth, latents, heads, head_dim, _ = shape
    config = EvollaConfig(
        protein_encoder_config={"hidden_size": dim},
        hidden_size=dim,
        resampler_depth=depth,
        resampler_num_latents=latents,
        resampler_heads=heads,
        resampler_dim_head=head_dim,
    )
    module = EvollaSequenceCompressorResampler(config)
    module.protein_projector = nn.Identity()  # Flamingo has none: the norm stands right after the last layer
    return module


def idefics(shape, qk_norm):
    dim, depth, latents, heads, head_dim, _ = shape
    config = IdeficsConfig(
        vision_config={"embed_dim": dim, "num_attention_heads": 1},
        perceiver_config={"qk_layer_norms_perceiver": qk_norm},
    )
    return IdeficsPerceiverResampler(config, dim, depth, heads, head_dim, latents)


def ours(shape, activation, qk_norm):
    dim, depth, latents, heads, head_dim, n = shape
    return PerceiverFlamingo(
        TokenSpec(n=n, dim=dim),
        depth=depth,
        num_latents=latents,
        num_heads=heads,
        head_dim=head_dim,
        expansion=4,
        activation=activation,
        qk_norm=qk_norm,
    )


def from_evolla(state):
    state = split_projections(state, ".0.to_kv.", (".attention.k_proj.", ".attention.v_proj."))
    pairs = [
        (".0.norm_media", ".context_norm"),
        (".0.norm_latents", ".latents_norm"),
        (".0.to_q", ".attention.q_proj"),
        (".0.to_out", ".attention.o_proj"),
        (".1.norm", ".mlp_norm"),
        (".1.fc", ".mlp.fc"),
    ]
    return rename(state, pairs)


def from_idefics(state):
    pairs = [
        ("blocks.", "layers."),
        (".0.context_layer_norm", ".context_norm"),
        (".0.latents_layer_norm", ".latents_norm"),
        (".0.q_layer_norm", ".attention.q_norm"),
        (".0.k_layer_norm", ".attention.k_norm"),
        (".0.output_proj", ".attention.o_proj"),
        *((f".0.{x}_proj", f".attention.{x}_proj") for x in "qkv"),
        (".1.ln", ".mlp_norm"),
        (".1.fc", ".mlp.fc1"),
        (".1.c_proj", ".mlp.fc2"),
        ("layer_norm.", "norm."),
    ]
    return rename(state, pairs)


def one_by_one(module, tokens):
    """IDEFICS knows no padding: each image goes alone, with its real tokens."""
    lengths = tokens.mask.sum(1).tolist()
    return torch.cat([module(x[None, :n]) for x, n in zip(tokens.x, lengths, strict=True)])


CASES = [
    ReferenceCase(
        name=f"perceiver_flamingo {kind}",
        option="resampler=perceiver_flamingo",
        paper="arXiv 2204.14198",
        reference="transformers.models.evolla.modeling_evolla.EvollaSequenceCompressorResampler",
        shapes=SHAPES,
        build_ref=evolla,
        build_ours=partial(ours, activation="gelu", qk_norm=False),
        inputs=partial(features, masked=kind == "masked"),
        call_ref=lambda module, tokens: module(tokens.x, tokens.mask.to(tokens.x.dtype)),
        convert=from_evolla,
    )
    for kind in ("dense", "masked")
] + [
    ReferenceCase(
        name=f"perceiver_idefics1 {kind}, {'with' if qk_norm else 'without'} norms on heads",
        option="resampler=perceiver_idefics1",
        paper="arXiv 2306.16527",
        reference="transformers.models.idefics.perceiver.IdeficsPerceiverResampler",
        shapes=SHAPES,
        build_ref=partial(idefics, qk_norm=qk_norm),
        build_ours=partial(ours, activation="relu", qk_norm=qk_norm),
        inputs=partial(features, masked=kind == "masked"),
        call_ref=one_by_one,
        convert=from_idefics,
    )
    for kind, qk_norm in (("dense", False), ("masked", True))
]
