"""Gates on keys in an llm: the dense formula, in both layouts, alone, with gradients, and under generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import beni.llm.segment_attention as segments_module
from beni.errors import CompositionError
from beni.llm import layout, probes
from beni.llm.generation import told_of
from beni.llm.hf import HFLlm
from beni.llm.row_attention import RowPlan, row_attention
from beni.llm.segment_attention import NAME, SegmentPlan, causal, flash, segment_attention, suits_flash
from beni.nn.gates import widened
from beni.types import Sequence
from support.decoders import FAMILIES, NO_DOUBLES, make

LENGTHS = (9, 5, 3, 8, 9)  # 9, 9 and 8 share a rectangle, in which the last has a padding cell
SINGLE = ("gemma2", *NO_DOUBLES)
INF = float("inf")
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def precise(family):
    llm = make(family).eval()
    return llm if family in SINGLE else llm.double()


def samples(llm, lengths=LENGTHS, gated=True, blocks=False, gaps=False, seed=3):
    """Each a row by itself, some keys of it with gates, one of them closed; the first position is always open."""
    torch.manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(llm.vocab_size, (1, length))
        sequence = Sequence.plain(llm.embed(ids).detach())
        places = sequence.position_ids.clone()
        if gaps:  # fusion has dropped one position after the first, two before the last
            places[:, 1:] += 1
            places[:, -1:] += 2
        gates = torch.randn(1, length, dtype=sequence.embeds.dtype).mul(2.0)
        gates[:, 0], gates[:, -1], gates[:, length // 2] = 0.0, 0.0, -INF
        own = torch.full((1, length), -1)
        own[:, length // 3 : length // 3 + 2] = 0
        made.append(
            replace(
                sequence,
                position_ids=places,
                log_gate=gates if gated else None,
                blocks=own if blocks else None,
            )
        )
    return made


def joined(rows, axis, **values):
    names = ("embeds", "position_ids", "images", "log_gate", "blocks")
    named = {name: [getattr(row, name) for row in rows] for name in names if getattr(rows[0], name) is not None}
    return Sequence(**{name: torch.cat(tensors, axis) for name, tensors in named.items()}, **values)


def packed(rows):
    lengths = torch.tensor([row.embeds.shape[1] for row in rows])
    return joined(rows, 1, cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)), longest=int(lengths.max()))


def padded(rows, left=False):
    """Rows of one length; what stands in the padding must not matter."""
    longest = max(row.embeds.shape[1] for row in rows)

    def longer(tensor, value):
        more = longest - tensor.shape[1]
        return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + ((more, 0) if left else (0, more)), value=value)

    padding = {"embeds": 7.0, "position_ids": 0, "images": -1, "log_gate": 3.0, "blocks": 0}
    filled = []
    for row in rows:
        there = {name: longer(getattr(row, name), v) for name, v in padding.items() if getattr(row, name) is not None}
        filled.append(replace(row, mask=longer(row.real.long(), 0), **there))
    return joined(filled, 0, mask=torch.cat([row.mask for row in filled]), left_padded=left)


def formula(
    module, query, key, value, mask, scaling=None, dropout=0.0, sliding_window=None, softcap=None, gates=None, **_
):
    """Attention of one plain row as it is written down."""
    assert gates is not None
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    k, v = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = torch.einsum("bhqd,bhkd->bhqk", query, k) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    where = torch.arange(length)
    hidden = where[None] > where[:, None]
    if sliding_window is not None:
        hidden = hidden | (where[:, None] - where[None] >= sliding_window)
    logits = (logits + gates[:, None, None]).masked_fill(hidden, -INF)
    return torch.einsum("bhqk,bhkd->bqhd", logits.softmax(-1), v), None


AttentionInterface.register("dense_formula", formula)


def by_formula(llm, row):
    llm.model.set_attn_implementation("dense_formula")
    return llm.model(
        inputs_embeds=row.embeds, position_ids=row.position_ids, use_cache=False, gates=row.log_gate
    ).logits[0]


def cut(logits, rows, layout):
    lengths = [row.embeds.shape[1] for row in rows]
    if layout == "packed":
        return logits[0].split(lengths)
    return [one[-n:] if layout == "left" else one[:n] for one, n in zip(logits, lengths, strict=True)]


LAYOUTS = {"packed": packed, "padded": padded, "left": lambda rows: padded(rows, left=True)}


@pytest.mark.parametrize("layout", [*LAYOUTS, "alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_dense_formula_in_each_layout(family, layout):
    llm = precise(family)
    rows = samples(llm)
    tolerance = 1e-5 if family in SINGLE else 1e-9
    weights = [torch.randn(row.embeds.shape[1], llm.vocab_size, dtype=row.embeds.dtype) for row in rows]
    gradients, logits = [], []
    for ours in (False, True):
        leaves = [row.log_gate.clone().requires_grad_() for row in rows]
        gated = [replace(row, log_gate=leaf) for row, leaf in zip(rows, leaves, strict=True)]
        if not ours:
            out = [by_formula(llm, row) for row in gated]
        elif layout == "alone":
            out = [llm(row)[0] for row in gated]
        else:
            out = cut(llm(LAYOUTS[layout](gated)), gated, layout)
        sum((one * w).sum() for one, w in zip(out, weights, strict=True)).backward()
        logits.append(torch.cat([one.detach() for one in out]))
        gradients.append(torch.cat([leaf.grad[0] for leaf in leaves]))
    scale = float(logits[0].abs().max())
    assert (logits[0] - logits[1]).abs().max() <= tolerance * scale
    assert (gradients[0] - gradients[1]).abs().max() <= tolerance * float(gradients[0].abs().max())
    assert gradients[0].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_gates_and_gaps_together_are_those_of_each_sample_alone(family, layout):
    llm = precise(family)
    rows = samples(llm, blocks=True, gaps=True)
    alone = [llm(packed([row]))[0] for row in rows]
    for ours, theirs in zip(cut(llm(LAYOUTS[layout](rows)), rows, layout), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = llm(packed([replace(row, blocks=None) for row in rows]))
    assert (torch.cat(alone) - plain[0]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt"])  # a window would count what is taken out
def test_a_closed_position_is_as_one_that_is_not_there(family, layout):
    llm = precise(family)
    rows = [replace(row, log_gate=row.log_gate.masked_fill(row.log_gate != -INF, 0.0)) for row in samples(llm)]
    out = cut(llm(LAYOUTS[layout](rows)), rows, layout)
    for row, ours in zip(rows, out, strict=True):
        left = row.log_gate[0] == 0
        theirs = llm(packed([row]).keep(left[None]))[0]
        torch.testing.assert_close(ours[left], theirs[:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_open_gates_change_nothing_and_where_all_are_closed_nothing_is_nan(layout):
    llm = make("mistral").eval()
    rows = samples(llm, gated=False)
    expected = llm(LAYOUTS[layout](rows))
    gated = [replace(row, log_gate=torch.zeros(1, row.embeds.shape[1])) for row in rows]
    real = LAYOUTS[layout](rows).real
    torch.testing.assert_close(llm(LAYOUTS[layout](gated))[real], expected[real], rtol=1e-4, atol=1e-4)
    closed = [replace(row, log_gate=torch.full((1, row.embeds.shape[1]), -INF)) for row in rows]
    assert llm(LAYOUTS[layout](closed)).isfinite().all()


def test_without_gates_attention_is_given_what_it_was_given_before(monkeypatch):
    """Same tensors, same digits: nothing is widened, no mask is made."""
    seen = []

    def spy(q, k, v, *options, **named):
        seen.append((q.shape[-1], named.get("attn_mask")))
        return plain(q, k, v, *options, **named)

    plain = F.scaled_dot_product_attention
    llm = make("llama").eval()
    rows = samples(llm, gated=False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    llm(packed(rows))
    assert set(seen) == {(8, None)}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_flash_attention_is_asked_for_what_the_rectangles_compute_with_gates(monkeypatch, heads, window):
    """The kernel runs on GPUs only; here a plain one with its interface, in half precision, stands in."""
    torch.manual_seed(0)
    borders = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])

    def plain(q, k, v, given, same, longest, also, *, scale, window_size, enable_gqa=False):
        assert {x.dtype for x in (q, k, v)} == {torch.bfloat16}
        assert {x.shape[-1] for x in (q, k, v)} == {24}  # 16, three for the gate, a multiple of 8
        outs = []
        for a, b in zip(given[:-1].tolist(), given[1:].tolist(), strict=True):
            rows = [x[a:b].float().transpose(0, 1)[None] for x in (q, k, v)]
            back = None if window_size[0] < 0 else window_size[0] + 1
            outs.append(causal(*rows, scale, 0.0, back, None)[0].transpose(0, 1))
        return torch.cat(outs).to(q.dtype)

    monkeypatch.setattr(segments_module, "varlen_attn", plain)
    q, k, v = (torch.randn(1, n, sum(LENGTHS), 16).bfloat16() for n in (heads[0], heads[1], heads[1]))
    gates = torch.randn(sum(LENGTHS)) * 5
    gates[4] = -INF
    results = []
    for kernel in (segments_module.in_rectangles, lambda *given: flash(*given[:5], given[6])):
        leaf = gates.clone().requires_grad_()
        plan = SegmentPlan.build(borders, sum(LENGTHS), log_gate=leaf)
        with monkeypatch.context() as patch:
            patch.setattr(segments_module, "in_rectangles", kernel)
            out, _ = segment_attention(torch.nn.Identity(), q, k, v, None, 0.3, 0.0, window, segments=plan)
        (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append((out.float(), leaf.grad))
    assert results[0][0].shape == (1, sum(LENGTHS), heads[0], 16)
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


@pytest.mark.parametrize(("width", "taken"), [(64, True), (248, True), (100, True), (254, False)])
def test_heads_that_are_too_wide_for_flash_attention_with_gates_are_known(width, taken):
    q = torch.zeros(5, 2, width, dtype=torch.bfloat16)
    plan = SegmentPlan.build(torch.tensor([0, 2, 5]), 5, log_gate=torch.zeros(5))
    wide = widened(q, q, q[..., :64], plan.log_gate[:, None], 0.3)
    assert suits_flash(*wide, plan, 0.0, None) == taken


def said_with_logits(generate):
    """What ``generate(llm)`` says, and the logits of every step."""

    def listened(llm, *arguments, **options):
        steps = []
        handle = llm.model.register_forward_hook(lambda module, given, out: steps.append(out.logits[:, -1]))
        try:
            return generate(llm, *arguments, **options), torch.stack(steps, 1)
        finally:
            handle.remove()

    return listened


@said_with_logits
def whole_passes(llm, row, new):
    """Greedy ids, each from a pass over everything so far."""
    said = []
    for _ in range(new):
        said.append(int(llm(packed([row]))[0, -1].argmax()))
        more = llm.embed(torch.tensor([[said[-1]]]))
        row = replace(
            row,
            embeds=torch.cat([row.embeds, more], 1),
            position_ids=torch.cat([row.position_ids, row.position_ids[:, -1:] + 1], 1),
            images=F.pad(row.images, (0, 1), value=-1),
            mask=F.pad(row.mask, (0, 1), value=1),
            log_gate=None if row.log_gate is None else F.pad(row.log_gate, (0, 1)),
            blocks=None if row.blocks is None else F.pad(row.blocks, (0, 1), value=-1),
        )
    return said


@said_with_logits
def from_cache(llm, sequence, **options):
    return llm.generate(sequence, **GREEDY, **options)


KINDS = {
    "plain": {"gated": False},
    "gaps": {"gated": False, "gaps": True},
    "blocks": {"gated": False, "blocks": True},
    "gates": {},
    "all": {"blocks": True, "gaps": True},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_says_what_whole_passes_say_row_by_row(family, kind):
    """The prompts are longer than the windows of mistral and gemma2, whose caches keep the last positions only."""
    llm = precise(family)
    rows = samples(llm, **KINDS[kind])
    expected, logits = zip(*(whole_passes(llm, row, 6) for row in rows), strict=True)
    said, ours = from_cache(llm, padded(rows, left=True), max_new_tokens=6)
    assert said.tolist() == list(expected)
    torch.testing.assert_close(ours, torch.cat(logits), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_beams_and_several_answers_know_whose_prompt_they_continue(family):
    llm = precise(family)
    rows = samples(llm, blocks=True, gaps=True)
    options = GREEDY | {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2}
    alone = [llm.generate(packed_alone(row), **options) for row in rows]
    together = llm.generate(padded(rows, left=True), **options)
    assert together.tolist() == torch.cat(alone).tolist()
    plain = samples(llm, gated=False)
    nothing = [replace(row, log_gate=torch.zeros_like(row.embeds[..., 0])) for row in plain]
    a, b = (llm.generate(padded(some, left=True), **options) for some in (plain, nothing))
    assert a.tolist() == b.tolist()


def packed_alone(row):
    return replace(row, mask=torch.ones_like(row.position_ids))


@torch.no_grad()
def test_generation_leaves_no_trace_and_a_plain_prompt_is_as_before():
    llm = make("llama").eval()
    rows = samples(llm, gated=False)
    plain = padded(rows, left=True)

    @said_with_logits
    def transformers_alone(llm):
        llm.model.set_attn_implementation("sdpa")
        return llm.model.generate(inputs_embeds=plain.embeds, attention_mask=plain.mask, max_new_tokens=5, **GREEDY)

    theirs, expected = transformers_alone(llm)
    llm.generate(padded(samples(llm, blocks=True), left=True), max_new_tokens=2, **GREEDY)
    assert "forward" not in vars(llm.model)
    ours, logits = from_cache(llm, plain, max_new_tokens=5)
    assert ours.equal(theirs)
    assert logits.equal(expected)


def test_what_generation_cannot_honour_is_an_error():
    llm = make("llama").eval()
    gated = padded(samples(llm, blocks=True), left=True)
    with pytest.raises(ValueError, match="static cache"):
        llm.generate(gated, max_new_tokens=2, cache_implementation="static", **GREEDY)
    with pytest.raises(ValueError, match="read at once, not after 3 of 9"):
        RowPlan.of(gated).after(3)
    for wrong in (padded(samples(llm)), packed(samples(llm))):
        with pytest.raises(ValueError, match="left-padded"):
            llm.generate(wrong, max_new_tokens=2, **GREEDY)


def bloom():
    architecture = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    return HFLlm(
        name=None, weights="random", architecture=architecture, attn_implementation="eager", tokenizer="embedded"
    ).eval()


def test_an_llm_that_does_not_pass_the_attention_on_is_refused_gates_and_told_so_under_generation():
    llm = bloom()
    assert layout.layout_of(llm, "packed", looks_ahead=False, gated=False) == "padded"
    with pytest.raises(CompositionError, match=r"E-ATTN \[selector x llm\]: bloom .*gates"):
        layout.layout_of(llm, "padded", looks_ahead=False, gated=True)
    with pytest.raises(CompositionError, match=r"E-ATTN \[fusion x llm\]: bloom .*look ahead"):
        layout.layout_of(llm, "padded", looks_ahead=True, gated=True)
    assert layout.layout_of(make("gpt2"), "padded", looks_ahead=True, gated=True) == "padded"
    row = samples(llm, (4,))[0]
    with told_of(llm.model, RowPlan.of(row)), pytest.raises((ValueError, TypeError)):
        llm.model(inputs_embeds=row.embeds)


def test_an_llm_that_keeps_samples_apart_by_masks_of_its_own_is_refused_gates():
    architecture = {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "rotary_dim": 4}
    llm = HFLlm(
        name=None,
        weights="random",
        architecture=architecture | {"n_positions": 64},
        attn_implementation="eager",
        tokenizer="embedded",
    )
    assert layout.layout_of(llm, "packed", looks_ahead=False, gated=False) == "packed"
    for needs in ({"looks_ahead": True, "gated": False}, {"looks_ahead": False, "gated": True}):
        with pytest.raises(CompositionError, match="E-ATTN"):
            layout.layout_of(llm, "packed", **needs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_finds_that_these_families_heed_gates(family):
    assert probes.heeds_gates(make(family).train())


def test_the_probe_finds_an_attention_that_loses_gates(monkeypatch):
    def without(module, *given, segments=None, **named):
        return segment_attention(module, *given, segments=replace(segments, log_gate=None), **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, without)
    assert not probes.heeds_gates(make("llama"))


def test_a_plan_counts_keys_from_the_end():
    real = torch.tensor([[False, True, True, True]])
    plan = RowPlan(real, log_gate=torch.tensor([[9.0, 1.0, 2.0, 3.0]]))
    assert plan.gates(4, 4).tolist() == [[9.0, 1.0, 2.0, 3.0]]
    assert plan.allowed(4, 4, None)[0, 0].long().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    later = plan.after(5)  # a sixth position; a layer with a window has kept three
    assert later.gates(1, 3).tolist() == [[3.0, 0.0, 0.0]]
    assert later.gates(1, 6).tolist() == [[9.0, 1.0, 2.0, 3.0, 0.0, 0.0]]
    assert later.allowed(1, 6, 4)[0, 0].long().tolist() == [[0, 0, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match="4 keys after 3 positions"):
        row_attention(torch.nn.Identity(), *(torch.zeros(1, 1, n, 8) for n in (3, 4, 4)), None, rows=plan.after(0))
