from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.cases.qformer import LAYER
from reference.convert import rename
from reference.harness import grid_tokens, scramble
from support.counting import flops_of

DIM, LLM = 24, 28
KEYS = {"num_heads": 3, "intermediate_size": 36}


def spec(rows, columns):
    return TokenSpec(n=rows * columns, dim=DIM, grid=(rows, columns))


def visual(rows, columns):
    return grid_tokens((rows, columns), DIM, torch.Generator().manual_seed(0), torch.float64)


@pytest.fixture
def windows(resampler):
    def make(rows, columns, **keys):
        stage = resampler("qformer_window", spec(rows, columns), LLM, **KEYS | keys).double()
        scramble(stage, 0)
        return stage

    return make


@torch.no_grad()
def test_the_last_windows_are_smaller_where_a_side_does_not_divide(windows):
    """6x5 patches in windows of 4: that at the lower right has 2x1 patches and 1x1 of its 2x2 queries."""
    stage = windows(6, 5, window=4, side=2)
    tokens = visual(6, 5)
    out = stage(tokens, StageContext())
    assert out.grid == stage.spec(spec(6, 5)).grid == (3, 3)

    config = Blip2QFormerConfig(
        hidden_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=36,
        cross_attention_frequency=1,
        encoder_hidden_size=DIM,
    )
    config._attn_implementation = "sdpa"
    qformer = Blip2QFormerModel(config).double().eval()
    names = {ours: theirs for theirs, ours in ((n, *rename({f"qformer.{n}": 0}, LAYER)) for n in qformer.state_dict())}
    qformer.load_state_dict({names[n]: t for n, t in stage.state_dict().items() if n in names}, strict=True)

    patches = stage.norm(tokens.x).unflatten(1, (6, 5))
    corner = patches[:, 4:, 4:].flatten(1, 2)  # (i, 2, d)
    seen = corner + stage.positions.unflatten(0, (4, 4))[:2, :1].flatten(0, 1)
    query = corner.mean(1, keepdim=True) + stage.queries[:1]
    expected = stage.proj(qformer(query, encoder_hidden_states=seen).last_hidden_state)
    assert (out.x[:, -1:] - expected).abs().max() <= 1e-10


@torch.no_grad()
def test_a_patch_reaches_the_queries_of_its_window_only(windows):
    stage = windows(6, 7, window=3, side=2)
    tokens = visual(6, 7)
    changed = tokens.with_features(tokens.x.clone())
    changed.x[:, 2 * 7 + 4] *= -1  # row 2, column 4: first window from above, second from the left
    moved = (stage(changed, StageContext()).x - stage(tokens, StageContext()).x).abs().amax((0, 2)).unflatten(0, (4, 5))
    assert moved[:2, 2:4].min() > 1e-6
    moved[:2, 2:4] = 0
    assert moved.max() == 0


@torch.no_grad()
def test_tokens_stand_for_and_where_the_patches_are_that_they_replace(windows):
    out = windows(5, 4, window=4, side=2)(visual(5, 4), StageContext())
    assert out.grid == (3, 2)
    assert out.size[0].unflatten(0, (3, 2)).tolist() == [[4, 4], [4, 4], [2, 2]]
    rows, columns = out.yx[0].unflatten(0, (3, 2)).unbind(-1)
    torch.testing.assert_close(rows[:, 0], torch.tensor([0.2, 0.6, 0.9]))
    torch.testing.assert_close(columns[0], torch.tensor([0.25, 0.75]))


def test_parameters_and_flops_follow_the_formula(windows, parameters):
    stage = windows(6, 5, window=4, side=2, depth=2)
    D, F, q, k = DIM, 36, 4, 16
    layer = 4 * (D**2 + D) + 2 * D + D * F + F + F * D + D + 2 * D
    cross = 4 * (D**2 + D) + 2 * D
    own = 2 * D + (q + k) * D + D * LLM + LLM
    assert parameters(stage) == 2 * (layer + cross) + 2 * D + own
    attention = 8 * q * D**2 + 4 * q**2 * D + 4 * q * D * F + 4 * q * D**2 + 4 * k * D**2 + 4 * q * k * D
    assert flops_of(stage, spec(6, 5)) == 4 * (2 * attention + 2 * q * D * LLM)


def test_tokens_without_a_grid_are_refused(resampler, windows):
    with pytest.raises(CompositionError, match="E-GRID"):
        resampler("qformer_window", replace(spec(4, 4), grid=None), LLM, **KEYS)
    with pytest.raises(ValueError, match="grid"):
        windows(4, 4)(replace(visual(4, 4), grid=None), StageContext())


def test_more_queries_than_patches_in_a_window_are_refused(resampler):
    for side in (0, 5):
        with pytest.raises(CompositionError, match=rf"E-DIV.*side={side}"):
            resampler("qformer_window", spec(4, 4), LLM, **KEYS, side=side)


def test_heads_that_do_not_divide_the_width_are_refused(resampler):
    with pytest.raises(CompositionError, match=r"E-HEADS.*num_heads=16 does not divide the width 24"):
        resampler("qformer_window", spec(4, 4), LLM)
