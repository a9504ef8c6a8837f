"""Packed samples do not see each other, in every family of decoders the probe says can keep them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import beni.llm.segment_attention as module
from beni.errors import ConfigError
from beni.llm.hf import HFLlm
from beni.llm.probes import isolates_segments
from beni.llm.segment_attention import (
    NAME,
    SegmentPlan,
    flash,
    flash_takes,
    in_rectangles,
    segment_attention,
    suits_flash,
)
from beni.types import Sequence
from support.decoders import FAMILIES, KV, NO_DOUBLES, SMALL, make

LENGTHS = (9, 5, 1, 8, 9)  # 9, 9 and 8 share a rectangle, in which the last has a padding cell


def sample_ids(llm, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(llm.vocab_size, (length,), generator=generator) for length in LENGTHS]


def packed(llm, samples):
    lengths = torch.tensor([len(ids) for ids in samples])
    borders = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
    embeds = llm.embed(torch.cat(samples)[None])
    out = llm(Sequence(embeds, positions[None], torch.full_like(positions[None], -1), cu_seqlens=borders))
    return out[0].split(lengths.tolist())


def padded(llm, samples):
    longest = max(map(len, samples))
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in samples])
    mask = torch.stack([torch.arange(longest) < len(row) for row in samples]).long()
    out = llm(replace(Sequence.plain(llm.embed(ids)), mask=mask))
    return [row[: len(ids)] for row, ids in zip(out, samples, strict=True)]


def alone(llm, samples):
    return [padded(llm, [ids])[0] for ids in samples]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_padded_and_separate_samples_have_equal_logits(family):
    # gemma2's eager attention makes NaN of a fully masked row in fp64: its softmax runs in fp32
    single = family in ("gemma2", *NO_DOUBLES)
    llm, tolerance = (make(family).eval(), 1e-4) if single else (make(family).double().eval(), 1e-6)
    samples = sample_ids(llm)
    reference = alone(llm, samples)
    for layout in (packed, padded):
        for ours, theirs in zip(layout(llm, samples), reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_changing_a_neighbour_changes_no_bit_of_a_sample(family):
    llm = make(family).eval()
    samples = sample_ids(llm)
    other = [(samples[0] + 1) % llm.vocab_size, samples[1], samples[2], (samples[3] + 5) % llm.vocab_size, samples[4]]
    before, after = packed(llm, samples), packed(llm, other)
    assert not before[0].equal(after[0])
    for place in (1, 2, 4):
        assert before[place].equal(after[place])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_finds_that_these_families_isolate_segments(family):
    llm = make(family).train()  # as it stands after building: dropout of gpt2 and opt must not fool the probe
    state = torch.get_rng_state()
    assert isolates_segments(llm)
    assert llm.training
    assert torch.get_rng_state().equal(state)


def test_the_probe_finds_a_model_that_mixes_neighbours(monkeypatch):
    llm = make("llama").eval()

    def leaky(module, query, key, value, mask, segments=None, **kwargs):
        whole = SegmentPlan.build(torch.tensor([0, query.shape[2]]), query.shape[2])
        return segment_attention(module, query, key, value, mask, segments=whole, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, leaky)
    assert not isolates_segments(llm)


def test_the_probe_finds_a_model_without_segment_attention():
    torch.manual_seed(0)
    architecture = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    llm = HFLlm(
        name=None, weights="random", architecture=architecture, attn_implementation="eager", tokenizer="embedded"
    )
    assert not isolates_segments(llm)


IN_THE_MASK = {
    "phimoe": KV | {"sliding_window": 16, "num_local_experts": 4},
    "llama4_text": KV
    | {"attention_chunk_size": 16, "num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 64},
    "mistral": KV | {"sliding_window": 16},
}


@pytest.mark.parametrize("family", IN_THE_MASK)
def test_the_probe_finds_a_window_that_only_the_mask_knows(monkeypatch, family):
    monkeypatch.setitem(FAMILIES, family, SMALL | IN_THE_MASK[family])
    llm = make(family).eval()
    before = llm.model.config.to_dict()
    samples = [torch.arange(40) * 31 % 97, torch.arange(20) * 31 % 97]  # longer than the window
    with torch.no_grad():
        pairs = zip(packed(llm, samples), alone(llm, samples), strict=True)
        same = all(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) for ours, theirs in pairs)
    assert same == (family == "mistral") == isolates_segments(llm)
    assert llm.model.config.to_dict() == before


def test_an_attention_that_a_model_lacks_is_an_error_with_the_fix():
    with pytest.raises(ConfigError, match=r"llm.attn_implementation=sdpa: Gemma2[^$]*attn_implementation=eager"):
        HFLlm(
            name=None,
            weights="random",
            architecture={"model_type": "gemma2", **FAMILIES["gemma2"]},
            attn_implementation="sdpa",
            tokenizer="embedded",
        )


@pytest.mark.parametrize("lengths", [(3,), (1, 1, 1), (9, 1, 8, 7, 2), (5, 4, 4, 4)])
def test_a_segment_plan_covers_every_position_exactly_once(lengths):
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    cells = SegmentPlan.build(borders, sum(lengths)).cells
    assert cells.index[cells.place].equal(torch.arange(sum(lengths)))
    real = set(range(len(cells.index))) - set(cells.padding.tolist())
    assert real == set(cells.place.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_separate_samples_have_equal_gradients(family):
    llm = make(family).eval()
    if family not in NO_DOUBLES:
        llm = llm.double()
    samples = sample_ids(llm)
    weights = [torch.randn(len(ids), llm.vocab_size, dtype=llm.model.dtype) for ids in samples]
    gradients = []
    for layout in (packed, alone):
        llm.zero_grad()
        sum((out * w).sum() for out, w in zip(layout(llm, samples), weights, strict=True)).backward()
        gradients.append({name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None})
    tolerance = 1e-4 if family in ("gemma2", *NO_DOUBLES) else 1e-6  # as above
    for name, gradient in gradients[0].items():
        scale = gradients[1][name].abs().max().clamp(min=1e-9)  # a key's bias has none
        assert (gradient - gradients[1][name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_asked_for_what_the_rectangles_compute(monkeypatch, heads, window):
    """The kernel runs on GPUs only; here a plain one with its interface stands in."""

    def plain(q, k, v, borders, same, longest, also, *, scale, window_size, enable_gqa=False):
        assert borders is same
        assert longest == also == len(q)
        assert enable_gqa == (q.shape[1] != k.shape[1])
        left, right = window_size
        outs = []
        for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            rows, groups = torch.arange(b - a), q.shape[1] // k.shape[1]
            ahead = rows[None] - rows[:, None]
            seen = (ahead <= right) & ((ahead >= -left) | (left < 0))
            keys, values = (x[a:b].repeat_interleave(groups, 1) for x in (k, v))
            logits = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scale
            weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
            outs.append(torch.einsum("hqk,khd->qhd", weights, values))
        return torch.cat(outs)

    monkeypatch.setattr(module, "varlen_attn", plain)
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), n, 8) for n in (heads[0], heads[1], heads[1]))
    borders = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    plan = SegmentPlan.build(borders, len(q))
    expected = in_rectangles(q, k, v, plan, 0.3, 0.0, window, None)
    torch.testing.assert_close(flash(q, k, v, plan, 0.3, window), expected, rtol=1e-5, atol=1e-6)


def test_the_whole_model_packed_equals_padded_in_loss_and_gradient(tiny_run, tiny_model, steps_of):
    gradients = {}
    for layout in ("packed", "padded"):
        model = tiny_model()
        batch = steps_of(tiny_run(), model, layout=layout)[0][0]
        loss = model(**batch.model_inputs()).loss
        loss.backward()
        gradients[layout] = {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in gradients["packed"].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients["padded"][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("width", "taken"), [(4, False), (8, True), (72, True), (100, False), (264, False)])
def test_heads_that_flash_attention_refuses_are_known(width, taken):
    assert flash_takes(width) == taken  # seen on an H200: "head_size must be a multiple of 8"


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"value": 8}, False),  # latent attention has values narrower than keys (DeepSeek)
        ({"softcap": 5.0}, False),
        ({"dropout": 0.1}, False),
        ({"blocks": True}, False),
        ({"dtype": torch.float32}, False),
    ],
)
def test_flash_attention_is_chosen_for_what_it_computes(change, suits):
    dtype = change.get("dtype", torch.bfloat16)
    q, k, v = (torch.zeros(5, n, width, dtype=dtype) for n, width in ((4, 16), (2, 16), (2, change.get("value", 16))))
    blocks = torch.zeros(5, dtype=torch.long) if "blocks" in change else None
    plan = SegmentPlan.build(torch.tensor([0, 2, 5]), 5, blocks)
    assert suits_flash(q, k, v, plan, change.get("dropout", 0.0), change.get("softcap")) == suits
