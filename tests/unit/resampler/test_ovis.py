from __future__ import annotations

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens
from support.counting import flops_of

DIM, LLM, WORDS = 6, 10, 14
SPEC = TokenSpec(n=15, dim=DIM, grid=(3, 5))


@pytest.fixture
def ovis(resampler):
    return lambda spec=SPEC, **keys: resampler("ovis", spec, LLM, **{"vocabulary": WORDS, "init_std": 1.0} | keys)


def visual():
    return grid_tokens((3, 5), DIM, torch.Generator().manual_seed(0), torch.float32)


def test_sides_that_a_block_does_not_divide_are_filled_with_zeros(ovis) -> None:
    stage, tokens = ovis(), visual()
    out = stage(tokens, StageContext())
    assert out.grid == stage.spec(SPEC).grid == (2, 3)
    assert out.size[0].tolist() == [4, 4, 2, 2, 2, 1]
    corner = torch.cat([tokens.x[:, -1], torch.zeros(2, 3 * DIM)], -1)
    expected = stage.norm(stage.head(corner)).softmax(-1) @ stage.words
    torch.testing.assert_close(out.x[:, -1], expected)


@pytest.mark.parametrize(("tokenize", "training"), [("argmax", True), ("argmax", False), ("gumbel", True)])
def test_a_hard_token_is_the_vector_of_one_word(ovis, tokenize, training) -> None:
    stage = ovis(tokenize=tokenize).train(training)
    x = stage(visual(), StageContext()).x
    distance = (x[:, :, None] - stage.words).norm(dim=-1).min(-1).values
    assert distance.max() < 1e-4


def test_evaluation_takes_the_likeliest_word_whatever_training_draws(ovis) -> None:
    likeliest, drawn = ovis(tokenize="argmax"), ovis(tokenize="gumbel")
    out = likeliest(visual(), StageContext()).x
    assert drawn(visual(), StageContext()).x.equal(out)
    assert not drawn.train()(visual(), StageContext()).x.equal(out)


def test_words_are_drawn_as_often_as_the_distribution_says(ovis) -> None:
    """2000 steps: a word of share p is drawn with a standard deviation of sqrt(p (1 - p) / 2000), at most 0.011."""
    stage = ovis(TokenSpec(n=1, dim=DIM, grid=(1, 1)), r=1, tokenize="gumbel").train()
    tokens = grid_tokens((1, 1), DIM, torch.Generator().manual_seed(0), torch.float32, images=1)
    share = stage.norm(stage.head(tokens.x)).softmax(-1).flatten()
    with torch.no_grad():
        x = torch.cat([stage(tokens, StageContext(step=step)).x[0] for step in range(2000)])
    counted = (x[:, None] - stage.words).norm(dim=-1).argmin(-1).bincount(minlength=WORDS) / 2000
    assert (counted - share).abs().max() < 0.045


@pytest.mark.parametrize("tokenize", ["argmax", "gumbel"])
def test_the_gradient_of_a_hard_token_is_that_of_the_distribution(ovis, tokenize) -> None:
    stage = ovis(tokenize=tokenize).train()
    tokens = visual()
    leaf = tokens.x.clone().requires_grad_()
    stage(tokens.with_features(leaf), StageContext()).x.square().sum().backward()
    assert leaf.grad.abs().sum(-1).min() > 0
    assert stage.head.weight.grad.abs().sum() > 0


def test_it_has_the_parameters_and_flops_of_its_formulas(ovis, parameters) -> None:
    assert parameters(ovis()) == 4 * DIM * WORDS + 2 * WORDS + WORDS * LLM
    assert flops_of(ovis(), SPEC) == 2 * 6 * (4 * DIM * WORDS + WORDS * LLM)


def test_tokens_without_a_grid_are_refused(ovis) -> None:
    with pytest.raises(CompositionError, match=r"^E-GRID .*resampler=ovis"):
        ovis(TokenSpec(n=15, dim=DIM))
