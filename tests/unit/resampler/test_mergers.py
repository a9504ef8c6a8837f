"""What the resamplers that make one token of a block of r x r have in common."""

from __future__ import annotations

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import TokenSpec
from reference.harness import grid_tokens
from support.counting import flops_of

DIM, LLM = 8, 12
SPEC = TokenSpec(n=24, dim=DIM, grid=(4, 6))
KEYS = {"ernie": {}, "glm4v": {"hidden": 20}, "granite_docling": {"r": 2}, "minicpmv": {"hidden": 20, "num_heads": 2}}
WEIGHTS = {
    # the temporal layer has the width of one frame
    "ernie": 4 * (32 * 32 + 32) + 4 * 32 + 32 * LLM + LLM + LLM,
    "glm4v": 32 * LLM + LLM + LLM * LLM + 2 * LLM + 3 * LLM * 20,
    "granite_docling": 2 * DIM + 32 * LLM + 2 * LLM + LLM * LLM + 2 * LLM,
    "minicpmv": 2 * DIM + 4 * (DIM * DIM + DIM) + 2 * 32 + 32 * 20 + 20 + 20 * DIM + DIM,
}
MERGERS = pytest.mark.parametrize("option", KEYS)


@pytest.fixture
def merger(resampler):
    return lambda option, spec=SPEC, **keys: resampler(option, spec, LLM, **KEYS[option] | keys)


@MERGERS
def test_it_has_the_parameters_of_its_formula(merger, parameters, option) -> None:
    assert parameters(merger(option)) == WEIGHTS[option]


def test_they_have_the_flops_of_their_formulas(merger) -> None:
    assert flops_of(merger("ernie"), SPEC) == 2 * 6 * (4 * 32 * 32 + 32 * LLM)
    assert flops_of(merger("glm4v"), SPEC) == 2 * 6 * (32 * LLM + LLM * LLM + 3 * LLM * 20)
    assert flops_of(merger("granite_docling"), SPEC) == 2 * 6 * (32 * LLM + LLM * LLM)
    attention = 24 * 4 * DIM * DIM + 2 * 24 * 4 * DIM
    assert flops_of(merger("minicpmv"), SPEC) == 2 * (attention + 6 * (32 * 20 + 20 * DIM))


@MERGERS
@torch.no_grad()
def test_a_token_depends_on_its_own_block_only(merger, option) -> None:
    stage = merger(option)
    tokens = grid_tokens((4, 6), DIM, torch.Generator().manual_seed(0), torch.float32)
    changed = tokens.with_features(tokens.x.clone())
    changed.x[:, 1 * 6 + 3] += 1  # row 1, column 3: upper row of blocks, the middle one
    before, after = (stage(given, StageContext()).x for given in (tokens, changed))
    assert (before != after).any(-1)[0].tolist() == [False, True, False, False, False, False]


@MERGERS
@pytest.mark.parametrize("r", [0, 3, 4])
def test_blocks_that_do_not_divide_both_sides_are_refused(merger, option, r) -> None:
    with pytest.raises(CompositionError, match=rf"resampler={option}: r={r} does not divide the 4x6 grid") as caught:
        merger(option, r=r)
    assert caught.value.code == "E-DIV"
    assert "set resampler.r to one of 1, 2" in str(caught.value)


@MERGERS
def test_tokens_without_a_grid_are_refused(merger, option) -> None:
    with pytest.raises(CompositionError, match=rf"^E-GRID .*resampler={option}"):
        merger(option, TokenSpec(n=24, dim=DIM))


def test_heads_that_do_not_divide_the_width_are_refused(merger) -> None:
    with pytest.raises(CompositionError, match=r"^E-HEADS .*num_heads=3 does not divide the width 8"):
        merger("minicpmv", num_heads=3)


def test_an_llm_whose_width_four_does_not_divide_has_no_positions(resampler) -> None:
    with pytest.raises(CompositionError, match=r"^E-DIM .*resampler=granite_docling .* which 14 does not allow"):
        resampler("granite_docling", SPEC, 14, r=2)


@torch.no_grad()
def test_equal_blocks_differ_by_their_place_in_granite_docling(merger) -> None:
    tokens = grid_tokens((4, 6), DIM, torch.Generator().manual_seed(0), torch.float32)
    alike = tokens.with_features(tokens.x[:, :1].expand_as(tokens.x))
    out = merger("granite_docling")(alike, StageContext()).x[0]
    assert torch.pdist(out).min() > 1e-3


@torch.no_grad()
def test_the_initial_merger_of_minicpmv_is_near_the_mean_of_its_window(merger) -> None:
    tokens = grid_tokens((4, 6), DIM, torch.Generator().manual_seed(0), torch.float32)
    out = merger("minicpmv")(tokens, StageContext()).x.unflatten(1, (2, 3))
    mean = tokens.x.unflatten(1, (2, 2, 3, 2)).mean((2, 4))
    assert (out - mean).abs().max() < 0.1 * mean.abs().max()
