"""resampler=deepseek_ocr and deepseek_ocr2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens, scramble
from support.counting import flops_of

DIM = 8
SPEC = TokenSpec(n=15, dim=DIM, grid=(3, 5))
FLOW = {"hidden_size": "auto", "depth": 2, "num_queries": 4, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 12}


@pytest.fixture
def flow(resampler):
    def make(**keys):
        stage = resampler("deepseek_ocr2", SPEC, 0, **FLOW | keys).double()
        scramble(stage, 0)
        return stage

    return make


def visual():
    return grid_tokens((3, 5), DIM, torch.Generator().manual_seed(0), torch.float64)


def test_1024_tokens_become_64(resampler) -> None:
    spec = TokenSpec(n=1024, dim=256, grid=(32, 32))
    made = resampler("deepseek_ocr", spec, 0, device="meta").spec(spec)
    assert made == TokenSpec(n=64, dim=1024, grid=(8, 8))


@pytest.mark.parametrize(("channels", "grid"), [([6], (2, 3)), ([6, 4], (1, 2)), ([6, 4, 2], (1, 1))])
def test_each_convolution_halves_both_sides(resampler, parameters, channels, grid) -> None:
    stage = resampler("deepseek_ocr", SPEC, 0, channels=channels)
    out = stage(grid_tokens((3, 5), DIM, torch.Generator().manual_seed(0), torch.float32), StageContext())
    assert out.grid == stage.spec(SPEC).grid == grid
    assert out.x.shape[-1] == channels[-1]
    assert float(out.size[0].sum()) == pytest.approx(15)
    assert parameters(stage) == 9 * sum(a * b for a, b in zip([DIM, *channels], channels, strict=False))


def test_it_has_the_flops_of_its_formula(resampler) -> None:
    stage = resampler("deepseek_ocr", SPEC, 0, channels=[6, 4])
    assert flops_of(stage, SPEC) == 2 * 9 * (6 * DIM * 6 + 2 * 6 * 4)


def test_no_convolution_at_all_is_refused(resampler) -> None:
    with pytest.raises(CompositionError, match=r"^E-DEPTH .*channels=\[\][\s\S]*fix: set resampler.channels="):
        resampler("deepseek_ocr", SPEC, 0, channels=[])


def test_a_convolution_without_a_grid_is_refused(resampler) -> None:
    with pytest.raises(CompositionError, match=r"^E-GRID .*resampler=deepseek_ocr"):
        resampler("deepseek_ocr", TokenSpec(n=15, dim=DIM), 0, channels=[4])


@torch.no_grad()
def test_a_query_sees_those_before_it_and_no_token_sees_a_query(flow) -> None:
    stage = flow()
    before = stage(visual(), StageContext()).x
    stage.queries[2] += 1
    moved = (stage(visual(), StageContext()).x - before).abs().amax((0, 2))
    assert moved[:2].max() == 0
    assert moved[2:].min() > 1e-6


@torch.no_grad()
def test_every_query_sees_every_token(flow) -> None:
    stage, tokens = flow(depth=1), visual()
    before = stage(tokens, StageContext()).x
    for place in (0, 14):
        changed = tokens.with_features(tokens.x.clone())
        changed.x[:, place] += 1
        assert (stage(changed, StageContext()).x - before).abs().amax((0, 2)).min() > 1e-6


@torch.no_grad()
def test_a_row_with_padding_is_as_the_row_without_it(flow) -> None:
    stage, tokens = flow(), visual()
    short = tokens.map(lambda tensor: tensor[:, :9])
    padded = replace(tokens.map(lambda tensor: tensor), mask=tokens.mask & (torch.arange(15) < 9))
    torch.testing.assert_close(stage(padded, StageContext()).x, stage(short, StageContext()).x)


def test_another_width_is_reached_by_a_matrix(flow, parameters) -> None:
    assert flow(hidden_size=8).proj(visual().x).equal(visual().x)
    wide = flow(hidden_size=20)
    assert wide.proj.weight.shape == (20, DIM)
    assert wide.spec(SPEC) == TokenSpec(n=4, dim=20)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide the width 8"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=2"),
        ({"num_heads": 8, "num_kv_heads": 1}, "num_heads=8 leaves heads of 1"),
    ],
)
def test_heads_that_do_not_fit_are_refused(flow, keys, message) -> None:
    with pytest.raises(CompositionError, match=rf"^E-HEADS .*{message}[\s\S]*fix: "):
        flow(**keys)
