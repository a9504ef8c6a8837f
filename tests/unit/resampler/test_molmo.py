from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens
from support.counting import flops_of

DIM, LLM = 8, 12
SPEC = TokenSpec(n=15, dim=DIM, grid=(3, 5))


@pytest.fixture
def molmo(resampler):
    return lambda spec=SPEC, **keys: resampler("molmo", spec, LLM, **{"num_heads": 2, "hidden": 20} | keys)


def visual():
    return grid_tokens((3, 5), DIM, torch.Generator().manual_seed(0), torch.float64)


def test_a_window_at_the_edge_stands_where_its_tokens_are_and_for_as_many(molmo) -> None:
    """3x5 in windows of 2: those of the last row and of the last column have half of their tokens."""
    out = molmo().double()(visual(), StageContext())
    assert out.grid == molmo().spec(SPEC).grid == (2, 3)
    assert out.size[0].tolist() == [4, 4, 2, 2, 2, 1]
    torch.testing.assert_close(out.yx[0, -1], torch.tensor([5 / 6, 9 / 10]))


@torch.no_grad()
def test_a_token_depends_on_its_own_window_only(molmo) -> None:
    stage, tokens = molmo().double(), visual()
    changed = tokens.with_features(tokens.x.clone())
    changed.x[:, 2 * 5 + 1] += 1  # row 2, column 1
    before, after = (stage(given, StageContext()).x for given in (tokens, changed))
    assert (before != after).any(-1)[0].tolist() == [False, False, False, True, False, False]


@torch.no_grad()
def test_a_window_of_one_token_reads_its_values(molmo) -> None:
    """Whatever the query is, softmax over one key is 1."""
    stage, tokens = molmo().double(), visual()
    attention = stage.attention
    expected = stage.mlp(attention.o_proj(attention.v_proj(tokens.x[:, -1])))
    torch.testing.assert_close(stage(tokens, StageContext()).x[:, -1], expected)


@torch.no_grad()
def test_a_window_with_one_open_token_reads_that_token_alone(molmo) -> None:
    stage, tokens = molmo().double(), visual()
    gates = torch.full(tokens.mask.shape, -torch.inf, dtype=torch.float64)
    gates[:, 0] = 0
    attention = stage.attention
    expected = stage.mlp(attention.o_proj(attention.v_proj(tokens.x[:, 0])))
    torch.testing.assert_close(stage(replace(tokens, log_gate=gates), StageContext()).x[:, 0], expected)


def test_further_layers_are_read_beside_the_features(molmo, parameters) -> None:
    more = replace(SPEC, levels=6)
    stage = molmo(more)
    assert parameters(stage) - parameters(molmo()) == 3 * 6 * DIM
    levels = torch.randn(2, 15, 6, requires_grad=True)
    tokens = grid_tokens((3, 5), DIM, torch.Generator().manual_seed(0), torch.float32)
    stage(replace(tokens, levels=levels), StageContext()).x.sum().backward()
    assert levels.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="6 channels of further layers"):
        stage(tokens, StageContext())


def test_it_has_the_flops_of_its_formula(molmo) -> None:
    """6 queries, each to the 4 places of its window; of keys and values there are as many as places."""
    attention = 6 * 2 * DIM * DIM + 24 * 2 * DIM * DIM + 2 * 24 * DIM
    assert flops_of(molmo(), SPEC) == 2 * (attention + 6 * (2 * DIM * 20 + 20 * LLM))


def test_heads_that_do_not_divide_the_width_are_refused(molmo) -> None:
    with pytest.raises(CompositionError, match=r"^E-HEADS .*resampler=molmo: num_heads=3"):
        molmo(num_heads=3)


def test_tokens_without_a_grid_are_refused(molmo) -> None:
    with pytest.raises(CompositionError, match=r"^E-GRID .*resampler=molmo"):
        molmo(TokenSpec(n=15, dim=DIM))
