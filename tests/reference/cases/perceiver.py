"""resampler=perceiver against transformers' Idefics2PerceiverResampler."""

from __future__ import annotations

from functools import partial

import torch
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler, Idefics2RMSNorm

from beni.resampler.perceiver import Perceiver
from beni.types import TokenSpec, VisualTokens
from reference.harness import ReferenceCase

# (width, depth, latents, heads, kv heads, head width, tokens): multi-query, grouped, multi-head
MULTI_QUERY = (24, 1, 5, 4, 1, 6, 21)
GROUPED = (32, 3, 7, 6, 2, 10, 35)
MULTI_HEAD = (16, 2, 4, 3, 3, 8, 10)


def wide_norm(norm, x):
    """Idefics2's norm as torch has it: its own rounds to fp32 inside, so 1e-10 would be out of reach."""
    return torch.nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def idefics2(shape):
    dim, depth, latents, heads, kv, head_dim, _ = shape
    config = Idefics2PerceiverConfig(
        hidden_size=dim,
        resampler_depth=depth,
        resampler_n_latents=latents,
        resampler_n_heads=heads,
        num_key_value_heads=kv,
        resampler_head_dim=head_dim,
    )
    config._attn_implementation = "sdpa"  # eager computes its softmax in fp32, whatever the dtype
    module = Idefics2PerceiverResampler(config)
    for norm in module.modules():
        if isinstance(norm, Idefics2RMSNorm):
            norm.forward = partial(wide_norm, norm)
    return module


def perceiver(shape):
    dim, depth, latents, heads, kv, head_dim, n = shape
    return Perceiver(
        TokenSpec(n=n, dim=dim),
        hidden_size="auto",
        depth=depth,
        num_latents=latents,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        concat_latents=True,
        attention_dropout=0.0,
    )


def features(shape, generator, dtype, masked):
    dim, n = shape[0], shape[-1]
    x = torch.randn(3, n, dim, generator=generator, dtype=torch.float64).to(dtype)
    lengths = torch.tensor([n, n - 3, 1] if masked else [n, n, n])
    mask = torch.arange(n)[None] < lengths[:, None]
    return VisualTokens.fresh(x, mask, torch.full((3, n, 2), 0.5), torch.ones(3, n))


CASES = [
    ReferenceCase(
        name=f"perceiver {kind}",
        option="resampler=perceiver",
        paper="arXiv 2405.02246",
        reference="transformers.models.idefics2.modeling_idefics2.Idefics2PerceiverResampler",
        shapes=(MULTI_QUERY, GROUPED, MULTI_HEAD),
        build_ref=idefics2,
        build_ours=perceiver,
        inputs=partial(features, masked=kind == "masked"),
        call_ref=lambda module, tokens: module(tokens.x, tokens.mask),
    )
    for kind in ("dense", "masked")
]
