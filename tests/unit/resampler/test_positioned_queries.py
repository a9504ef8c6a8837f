"""resampler=qwen_vl, mqt and aria: one cross-attention, whose queries do not see each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens, scramble
from support.counting import flops_of

SPEC = TokenSpec(n=12, dim=20, grid=(3, 4))
DIM = 24


def visual(seed=0, images=2):
    return grid_tokens((3, 4), SPEC.dim, torch.Generator().manual_seed(seed), torch.float64, images)


@pytest.fixture
def mqt(resampler):
    def make(**keys):
        stage = resampler(
            "mqt", SPEC, DIM, **{"max_queries": 16, "num_queries": 16, "nested": [], "num_heads": 2} | keys
        ).double()
        scramble(stage, 0)
        return stage

    return make


@pytest.fixture
def qwen_vl(resampler):
    stage = resampler("qwen_vl", SPEC, DIM, side=3, num_heads=2).double()
    scramble(stage, 0)
    return stage


def test_qwens_parameters_and_flops_follow_the_formula(resampler, parameters):
    M, N, Dv, Dt = 9, 12, 20, 24
    stage = resampler("qwen_vl", SPEC, DIM, side=3, num_heads=2)
    norms = 4 * Dt + 2 * Dt
    assert parameters(stage) == M * Dt + Dv * Dt + 4 * Dt**2 + 4 * Dt + norms + Dt**2
    flops = 2 * N * Dv * Dt + 2 * (2 * M + 2 * N) * Dt**2 + 4 * M * N * Dt + 2 * M * Dt**2
    assert flops_of(stage, SPEC) == flops
    assert stage.spec(SPEC) == TokenSpec(n=9, dim=24, space="llm")


def test_qwens_heads_have_128_channels_unless_told_otherwise(resampler):
    stage = resampler("qwen_vl", SPEC, 512, device="meta")
    assert (stage.attention.num_heads, stage.attention.head_dim) == (4, 128)
    assert stage.spec(SPEC).n == 256


@torch.no_grad()
def test_the_order_of_tokens_without_a_grid_does_not_matter_but_their_places_do(qwen_vl, mqt):
    scattered = replace(visual(), grid=None)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = replace(scattered, x=scattered.x[:, order], yx=scattered.yx[:, order])
    displaced = replace(scattered, yx=scattered.yx[:, order])
    for stage in (qwen_vl, mqt()):
        expected = stage(scattered, StageContext()).x
        assert (stage(shuffled, StageContext()).x - expected).abs().max() <= 1e-10
        assert (stage(displaced, StageContext()).x - expected).abs().max() > 1e-3


@torch.no_grad()
def test_losing_the_grid_but_no_token_changes_nothing(qwen_vl, mqt):
    for stage in (qwen_vl, mqt()):
        gone = stage(replace(visual(), grid=None), StageContext()).x
        assert (gone - stage(visual(), StageContext()).x).abs().max() <= 1e-6  # places are fp32


@torch.no_grad()
def test_queries_stand_on_a_grid_of_their_own(qwen_vl, mqt):
    places = qwen_vl(visual(), StageContext()).yx[0]
    torch.testing.assert_close(places[:4], torch.tensor([[1, 1], [1, 3], [1, 5], [3, 1]]) / 6)
    assert mqt(num_queries=5)(visual(), StageContext()).yx[1, 4].tolist() == [0.375, 0.125]


@torch.no_grad()
@pytest.mark.parametrize("key_content", [True, False])
def test_the_first_queries_read_the_same_however_many_follow(mqt, key_content):
    everything = mqt(key_content=key_content)(visual(), StageContext()).x
    for m in (1, 2, 7):
        few = mqt(key_content=key_content, num_queries=m)(visual(), StageContext())
        assert few.x.shape == (2, m, DIM)
        assert (few.x - everything[:, :m]).abs().max() <= 1e-10
        assert few.size.sum(1).tolist() == [12, 12]


@torch.no_grad()
@pytest.mark.parametrize("key_content", [True, False])
def test_only_keys_with_content_look_at_different_places_in_different_images(mqt, key_content):
    """With attention weights that do not depend on the image, what is read is linear in the values."""
    stage = mqt(key_content=key_content)
    stage.value_norm = nn.Identity()
    a, b = visual(0), visual(1)
    both, none = a.with_features(a.x + b.x), a.with_features(torch.zeros_like(a.x))
    f = lambda tokens: stage(tokens, StageContext()).x  # noqa: E731
    gap = (f(both) + f(none) - f(a) - f(b)).abs().max()
    assert (gap > 1e-2) if key_content else (gap <= 1e-10)


def test_mqts_parameters_do_not_depend_on_how_many_queries_are_used_but_its_flops_do(mqt, parameters):
    few, many = mqt(num_queries=3), mqt()
    D, N = SPEC.dim, SPEC.n
    assert parameters(few) == parameters(many) == 16 * D + 4 * D**2 + 4 * D + 6 * D + D * DIM
    for stage, m in ((few, 3), (many, 16)):
        assert flops_of(stage, SPEC) == 4 * m * D**2 + 4 * N * D**2 + 4 * m * N * D + 2 * m * D * DIM


def test_queries_that_are_no_square_or_too_few_are_refused(mqt):
    with pytest.raises(CompositionError, match=r"E-SQUARE.*max_queries=15(.|\n)*max_queries=9"):
        mqt(max_queries=15, num_queries=3)
    for m in (0, 17):
        with pytest.raises(CompositionError, match=rf"E-TOKENS.* {m} of resampler.max_queries="):
            mqt(num_queries=m)


def test_aria_follows_the_formula_and_ends_at_the_llms_width(resampler, parameters):
    stage = resampler("aria", SPEC, DIM, num_queries=5, num_heads=4)
    M, N, Dv, Dt = 5, 12, 20, 24
    attention = 3 * Dv**2 + 4 * (Dv**2 + Dv) + Dv**2 + Dv
    assert parameters(stage) == M * Dv + attention + 6 * Dv + Dv * Dt + Dt**2
    flops = 2 * M * Dv**2 * 4 + 4 * N * Dv**2 * 2 + 4 * M * N * Dv + 2 * M * Dt * (Dv + Dt)
    assert flops_of(stage, SPEC) == flops
    assert stage.spec(SPEC) == TokenSpec(n=5, dim=24, space="llm")


@pytest.mark.parametrize(("option", "width"), [("qwen_vl", 24), ("mqt", 20), ("aria", 20)])
def test_heads_that_do_not_divide_the_width_are_refused(resampler, option, width):
    with pytest.raises(CompositionError, match=rf"E-HEADS.*{option}: num_heads=7 does not divide the width {width}"):
        resampler(option, SPEC, DIM, num_heads=7)


def test_positions_need_a_width_that_divides_by_four(resampler):
    with pytest.raises(CompositionError, match=r"E-DIM.*26"):
        resampler("qwen_vl", SPEC, 26, num_heads=2)
    with pytest.raises(CompositionError, match=r"E-DIM.*22"):
        resampler("mqt", replace(SPEC, dim=22), DIM, num_heads=2)


@torch.no_grad()
@pytest.mark.parametrize("option", ["qwen_vl", "mqt", "aria"])
def test_queries_read_different_things_from_the_start(resampler, option):
    spec = TokenSpec(n=36, dim=256, grid=(6, 6))
    tokens = grid_tokens((6, 6), 256, torch.Generator().manual_seed(0), torch.float32)
    (first, _) = resampler(option, spec, 256)(tokens, StageContext()).x
    spread = (first - first.mean(0)).norm() / first.norm()
    assert spread > 0.02
