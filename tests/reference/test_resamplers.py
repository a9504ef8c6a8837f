"""resampler=perceiver against transformers' Idefics2PerceiverResampler."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler, Idefics2RMSNorm

from beni.resampler.perceiver import Perceiver
from beni.stage import StageContext, TokenSpec
from beni.types import VisualTokens

# (width, depth, latents, heads, kv heads, head width, tokens): multi-query, grouped, multi-head
CONFIGS = {
    "multi-query": (24, 1, 5, 4, 1, 6, 21),
    "grouped": (32, 3, 7, 6, 2, 10, 35),
    "multi-head": (16, 2, 4, 3, 3, 8, 10),
}


def wide_norm(norm, x):
    """Idefics2's norm as torch has it: its own rounds to fp32 inside, so 1e-10 would be out of reach."""
    return torch.nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def visual(x, mask):
    n = x.shape[1]
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return VisualTokens(x, mask, torch.full((*x.shape[:2], 2), 0.5), torch.ones(x.shape[0], n))


def case_of(make_case, name, masked):
    dim, depth, latents, heads, kv, head_dim, n = CONFIGS[name]

    def build_ref():
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

    def build_ours():
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

    def inputs(generator, dtype):
        x = torch.randn(3, n, dim, generator=generator, dtype=torch.float64).to(dtype)
        lengths = torch.tensor([n, n - 3, 1])
        return x, (torch.arange(n)[None] < lengths[:, None]) if masked else None

    def call_ref(module, x, mask):
        full = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        return module(x, full)

    return make_case(
        name=name,
        build_ref=build_ref,
        build_ours=build_ours,
        inputs=inputs,
        call_ref=call_ref,
        call_ours=lambda module, x, mask: module(visual(x, mask), StageContext()).x,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_perceiver_equals_idefics2(reference_case, compare, name, masked, dtype):
    for seed in range(3):
        compare(case_of(reference_case, name, masked), dtype, seed)


def test_latents_that_do_not_see_themselves_equal_idefics2_without_its_latent_keys(reference_case, scrambled):
    """Idefics2 has no such switch: its latents are pushed out of reach by a mask over all keys."""
    theirs = case_of(reference_case, "grouped", False).build_ref().double().eval()
    ours = case_of(reference_case, "grouped", False).build_ours().double().eval()
    scrambled(theirs, 0)
    ours.load_state_dict(theirs.state_dict())
    for layer in ours.layers:
        layer.concat_latents = False
    x = torch.randn(2, 35, 32, dtype=torch.float64)
    latents = theirs.latents.expand(2, -1, -1)
    mask = torch.zeros(2, 1, 7, 42, dtype=torch.float64)
    mask[..., 35:] = float("-inf")
    for layer in theirs.layers:
        latents = layer(latents, x, attention_mask=mask)
        latents = latents[0] if isinstance(latents, tuple) else latents
    out = ours(visual(x, None), StageContext()).x
    assert (out - theirs.norm(latents)).abs().max() <= 1e-10
