"""What every llm option must do, at a small size of its declared architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.model.costing.table import propagate
from beni.types import Sequence

GROUPS = ("llm",)
LENGTH = 9


@pytest.fixture
def llm(make, option):
    return make(option)


def ids(llm, rows=3):
    return torch.randint(llm.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


def logits(llm, tokens, mask=None):
    sequence = Sequence.plain(llm.embed(tokens))
    return llm(sequence if mask is None else replace(sequence, mask=mask))


@torch.no_grad()
def test_its_sizes_are_those_of_its_tensors(llm, option):
    tokens = ids(llm)
    assert llm.embed(tokens).shape == (3, LENGTH, llm.hidden_size)
    assert logits(llm, tokens).shape == (3, LENGTH, llm.vocab_size)
    assert len(llm.layers()) == 3
    assert llm.max_positions == 64


@torch.no_grad()
def test_the_head_on_chosen_rows_is_the_head_on_all_of_them(llm, option):
    tokens, keep = ids(llm), torch.tensor([1, 4, 8])
    chosen = llm(Sequence.plain(llm.embed(tokens)), keep)
    torch.testing.assert_close(chosen, logits(llm, tokens)[:, keep])


@torch.no_grad()
def test_a_later_position_and_padding_never_reach_an_earlier_one(llm, option):
    tokens = ids(llm)
    changed, mask = tokens.clone(), torch.ones_like(tokens)
    changed[:, 6:] = (changed[:, 6:] + 1) % llm.vocab_size
    mask[:, 6:] = 0
    before = logits(llm, tokens)[:, :6]
    torch.testing.assert_close(logits(llm, changed)[:, :6], before)
    torch.testing.assert_close(logits(llm, changed, mask)[:, :6], before)


@torch.no_grad()
def test_a_row_does_not_see_the_others_of_its_batch(llm, option):
    tokens = ids(llm)
    changed = tokens.clone()
    changed[1] = (changed[1] + 1) % llm.vocab_size
    before, after = logits(llm, tokens), logits(llm, changed)
    assert before[0].equal(after[0])
    assert before[2].equal(after[2])
    assert not before[1].equal(after[1])


def test_its_head_can_be_computed_by_itself(llm, option):
    assert llm.capabilities.splits_head


def test_it_keeps_packed_samples_apart(llm, option):
    assert llm.capabilities.packed


@torch.no_grad()
def test_one_stream_gives_one_llm_and_its_state_loads_into_another(make, option):
    ours, again, other = (make(option, seed=seed) for seed in (0, 0, 1))
    assert all(t.equal(again.state_dict()[n]) for n, t in ours.state_dict().items())
    tokens = ids(ours)
    assert not logits(other, tokens).equal(logits(ours, tokens))
    other.load_state_dict(ours.state_dict())
    assert logits(other, tokens).equal(logits(ours, tokens))


@torch.no_grad()
def test_bf16_is_near_fp32(llm, option):
    expected = logits(llm, ids(llm))
    half = logits(llm.to(torch.bfloat16), ids(llm))
    assert (half.float() - expected).norm() <= 2e-2 * expected.norm()


def test_a_gradient_reaches_every_parameter(llm, option):
    out = logits(llm, ids(llm))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert not [name for name, p in llm.named_parameters() if p.grad is None or not p.grad.abs().max()]


def test_at_its_real_size_it_fits_a_model_without_any_weight(option):
    from beni.config.compose import compose

    model = propagate(compose([f"llm={option[1]}", "llm.weights=random"]))
    assert model.specs["llm"].dim == model.llm.hidden_size
    assert {p.device.type for p in model.llm.parameters()} == {"meta"}
