from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens, scramble
from support.counting import flops_of

SIGLIP = TokenSpec(n=729, dim=1152, grid=(27, 27))
SMALL = TokenSpec(n=12, dim=16, grid=(3, 4))


def test_the_wished_perceiver_has_19763712_parameters_and_costs_3154_megaflops(resampler, parameters):
    stage = resampler("perceiver", SIGLIP, 2048, device="meta", hidden_size=1152)
    assert parameters(stage) == 19_763_712
    assert flops_of(stage, SIGLIP) == pytest.approx(3.154e9, rel=1e-3)


@pytest.mark.parametrize("kv", [1, 2, 6])
@pytest.mark.parametrize("concat", [True, False])
def test_parameters_and_flops_follow_the_formula(resampler, parameters, kv, concat):
    L, D, depth, h, dh, N = 5, 16, 3, 6, 10, 12
    stage = resampler(
        "perceiver",
        SMALL,
        8,
        depth=depth,
        num_latents=L,
        num_heads=h,
        num_kv_heads=kv,
        head_dim=dh,
        concat_latents=concat,
    )
    assert parameters(stage) == L * D + depth * (2 * D * h * dh + 2 * D * kv * dh + 12 * D**2 + 3 * D) + D
    K = N + L if concat else N
    per_layer = 4 * L * D * h * dh + 4 * K * D * kv * dh + 4 * L * K * h * dh + 24 * L * D**2
    assert flops_of(stage, SMALL) == depth * per_layer


def test_it_stays_in_vision_space_and_the_idefics2_order_ends_at_the_llms_width(resampler):
    stay, go = resampler("perceiver", SMALL, 24), resampler("perceiver_idefics2", SMALL, 24)
    assert stay.spec(SMALL) == TokenSpec(n=64, dim=16)
    assert go.spec(SMALL) == TokenSpec(n=64, dim=24, space="llm")


def test_the_idefics2_order_costs_a_projection_and_a_perceiver_at_the_llms_width(resampler, parameters):
    wide = replace(SMALL, dim=24, space="llm")
    both, alone = resampler("perceiver_idefics2", SMALL, 24), resampler("perceiver", wide, 24, depth=3, num_kv_heads=4)
    hidden = 84  # 3.5 x 24
    projection = 2 * 16 * hidden + hidden * 24
    assert parameters(both) == projection + parameters(alone)
    assert flops_of(both, SMALL) == 2 * SMALL.n * projection + flops_of(alone, wide)


@pytest.mark.parametrize("option", ["perceiver", "perceiver_idefics2"])
def test_kv_heads_that_do_not_divide_the_heads_are_refused(resampler, option):
    for kv in (0, 3):
        with pytest.raises(CompositionError, match=rf"E-HEADS.*num_kv_heads={kv}"):
            resampler(option, SMALL, 24, num_kv_heads=kv)


def test_a_width_other_than_that_of_the_tokens_is_refused(resampler):
    with pytest.raises(CompositionError, match=r"E-DIM.*hidden_size=1024"):
        resampler("perceiver", SMALL, 24, hidden_size=1024)


@torch.no_grad()
def test_levels_and_sources_end_at_a_resampler_with_queries(resampler):
    stage = resampler("perceiver", SMALL, 24)
    tokens = grid_tokens((3, 4), 16, torch.Generator().manual_seed(0), torch.float32)
    rich = replace(tokens, levels=torch.randn(2, 12, 5), sources=(tokens,))
    out = stage(rich, StageContext())
    assert out.levels is None
    assert out.sources == ()
    assert stage.spec(replace(SMALL, levels=5, sources=(SMALL,))) == stage.spec(SMALL)


@torch.no_grad()
@pytest.mark.parametrize("option", ["perceiver", "perceiver_idefics2", "perceiver_flamingo", "perceiver_idefics1"])
def test_the_order_of_the_tokens_does_not_matter(resampler, option):
    stage = resampler(option, SMALL, 24, num_latents=5)
    scramble(stage, 0)
    tokens = grid_tokens((3, 4), 16, torch.Generator().manual_seed(0), torch.float64)
    shuffled = tokens.with_features(tokens.x[:, torch.randperm(12, generator=torch.Generator().manual_seed(1))])
    stage = stage.double()
    difference = stage(shuffled, StageContext()).x - stage(tokens, StageContext()).x
    assert difference.abs().max() <= 1e-10


@pytest.mark.parametrize("option", ["perceiver_flamingo", "perceiver_idefics1"])
def test_flamingos_parameters_and_flops_follow_the_formula(resampler, parameters, option):
    L, D, depth, h, dh, N = 5, 16, 2, 3, 10, 12
    stage = resampler(option, SMALL, 24, num_latents=L, depth=depth, num_heads=h, head_dim=dh)
    norms_on_heads = 4 * dh if option == "perceiver_idefics1" else 0
    layer = 4 * D + 4 * D * h * dh + 2 * D + 8 * D**2 + norms_on_heads
    assert parameters(stage) == L * D + depth * layer + 2 * D
    K = N + L
    per_layer = 2 * L * D * h * dh + 4 * K * D * h * dh + 4 * L * K * h * dh + 2 * L * h * dh * D + 16 * L * D**2
    assert flops_of(stage, SMALL) == depth * per_layer
