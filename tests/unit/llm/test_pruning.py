"""Tokens that leave between layers: as closed ones to those that stay, in every layout, with a cache and without."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.llm import pruning
from beni.llm.forward import with_forward
from beni.llm.layout import layout_of
from beni.llm.row_attention import RowPlan
from beni.llm.visits import Places
from beni.training.blocks import recompute
from beni.types import Cut, LayerVisitor, Pruning, Sequence
from support.families import LLMS
from support.image_rows import DEPTH, alone, make, rows

REFUSED = ("stablelm", "falcon", "gptj", "bloom", "mamba")
"""Families that do not pass the registered attention on, or have a state instead."""

FAMILIES = [family for family in LLMS if family not in REFUSED]
EMBEDDED = ("gpt2", "opt")
"""Families whose positions are a part of the embeddings."""


def by_attention(candidates):
    return candidates.attention.weights(candidates.last[:, None]).mean(1)[:, 0]


def twice(sees="before", compact=False):
    """Three of five image tokens stay, then one; four of seven, then one."""
    return Pruning({1: Cut(0.6, by_attention, sees), 3: Cut(0.2, by_attention, sees)}, compact=compact)


@contextmanager
def noted(monkeypatch):
    """Inside the block: by layer, the positions that were left in front of it."""
    left, own = {}, pruning.Passing._leave

    def leave(self, layer, hidden, before, kept):
        out = own(self, layer, hidden, before, kept)
        found = self._left[layer]
        there = torch.zeros_like(self.whole.real)
        for row, (index, real) in enumerate(zip(found.index, found.real, strict=True)):
            there[row, index[real]] = True
        left[layer] = there
        return out

    with monkeypatch.context() as patched:
        patched.setattr(pruning.Passing, "_leave", leave)
        yield left


class Closed:
    """A layer whose attention is told by its plan that some positions are closed."""

    def __init__(self, layer, gates):
        self.forward, self.gates = layer.forward, gates

    def __call__(self, *arguments, **named):
        if "rows" in named:
            told = {"rows": replace(named["rows"], log_gate=self.gates, masks={})}
        else:
            told = {"segments": replace(named["segments"], log_gate=self.gates[0])}
        return self.forward(*arguments, **{**named, **told})


def closed(llm, sequence, left):
    """Logits where positions that have left are closed to attention from there on, and all are computed."""
    open_ = torch.zeros(sequence.images.shape)
    with ExitStack() as stack:
        there = sequence.real
        for index, layer in enumerate(llm.layers()):
            there = left.get(index, there)
            gates = open_.masked_fill(~there & sequence.real, -torch.inf)
            stack.enter_context(with_forward(layer, Closed(layer, gates)))
        return llm(replace(sequence, log_gate=open_))


@pytest.mark.parametrize("sees", ["before", "next"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_to_leave_is_to_be_closed_from_there_on(family, sees, monkeypatch):
    llm = make(family, **({"sliding_window": 4} if family == "mistral" else {}))
    for sequence in (rows(llm), rows(llm).end_to_end()[0]):
        with noted(monkeypatch) as left:
            found = llm(replace(sequence, pruning=twice(sees)))
        assert {layer: int((sequence.real & ~there).sum()) for layer, there in left.items()} == {1: 5, 3: 10}
        stay = left[3]
        expected, plain = closed(llm, sequence, left), llm(sequence)
        assert (found - expected)[stay].abs().max() < 1e-5
        assert (found - plain)[stay].abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_samples_are_pruned_alike_packed_padded_and_alone(family):
    llm, prune = make(family), twice()
    padded = rows(llm)
    packed = llm(replace(padded.end_to_end()[0], pruning=prune))[0]
    each = torch.cat([llm(replace(alone(padded, row), pruning=prune))[0] for row in range(3)])
    torch.testing.assert_close(packed, each, rtol=0, atol=1e-5)
    torch.testing.assert_close(llm(replace(padded, pruning=prune))[padded.real], each, rtol=0, atol=1e-5)


NEW = 5
OPTIONS = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 2}


@torch.no_grad()
def uncached(llm, prompt, prune):
    """What whole passes say, one after another; new tokens are the answer, so they judge nothing."""
    said, read = [], prompt.embeds.shape[1]
    while len(said) < NEW:
        labels = torch.full(prompt.images.shape, -100)
        labels[:, read:] = 5
        token = llm(replace(prompt, labels=labels, pruning=prune))[0, -1].argmax()
        said.append(int(token))
        embeds = torch.cat([prompt.embeds, llm.embed(token[None, None])], 1)
        images = torch.cat([prompt.images, torch.tensor([[-1]])], 1)
        prompt = replace(Sequence.plain(embeds), images=images)
    return said


@pytest.mark.parametrize("compact", [False, True], ids=["preserve", "compact"])
@pytest.mark.parametrize("sees", ["before", "next"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "mixtral"])
@torch.no_grad()
def test_generation_with_caches_of_different_lengths_says_what_whole_passes_say(family, sees, compact):
    llm, prune = make(family), twice(sees, compact)
    prompts = rows(llm)
    said = llm.generate(replace(prompts, pruning=prune), **OPTIONS).tolist()
    assert said == [uncached(llm, alone(prompts, row), prune) for row in range(3)]
    if family in ("llama", "mistral", "phi3"):
        assert said != llm.generate(prompts, **OPTIONS).tolist()


@torch.no_grad()
def test_the_caches_behind_a_cut_hold_what_is_left(monkeypatch):
    llm, held = make("llama"), []
    own = llm.model.forward

    def forward(*arguments, **named):
        out = own(*arguments, **named)
        cache = named["past_key_values"]
        held.append([cache.get_seq_length(layer) for layer in range(DEPTH)])
        return out

    with with_forward(llm.model, forward):
        llm.generate(replace(alone(rows(llm), 1), pruning=twice()), **OPTIONS)
    assert held == [[14 + new, 11 + new, 11 + new, 8 + new] for new in range(NEW)]


@torch.no_grad()
def test_beams_go_on_with_what_is_left_of_their_prompt():
    llm, prune = make("llama"), twice()
    prompts = rows(llm)
    together = llm.generate(replace(prompts, pruning=prune), num_beams=3, **OPTIONS)
    for row in range(3):
        own = llm.generate(replace(alone(prompts, row), pruning=prune), num_beams=3, **OPTIONS)
        assert together[row].equal(own[0])


@torch.no_grad()
def test_tokens_move_up_to_the_first_positions():
    """As though the sequence had been shorter from the beginning, where hidden states know nothing of positions yet."""
    llm = make("llama")
    sequence = alone(rows(llm), 1)
    with llm.around_layers({0: LayerVisitor(after=lambda hidden, call: sequence.embeds)}):
        moved = llm(replace(sequence, pruning=Pruning({1: Cut(2 / 7, first, "before")}, compact=True)))
    kept = torch.ones_like(sequence.real)
    kept[0, 4:9] = False
    shorter = replace(sequence.keep(kept), position_ids=torch.arange(9)[None])
    with llm.around_layers({0: LayerVisitor(after=lambda hidden, call: shorter.embeds)}):
        expected = llm(shorter)
    torch.testing.assert_close(moved[kept], expected[0], rtol=0, atol=1e-5)


def first(candidates):
    """The earlier the higher."""
    where = torch.arange(candidates.image.shape[1], device=candidates.image.device).float()
    return -where.expand(candidates.image.shape)


@torch.no_grad()
def test_each_sample_keeps_its_share_and_images_behind_an_answer_stay(monkeypatch):
    llm = make("llama")
    sequence = rows(llm, lengths=(12, 12), images=((1, 5), (1, 9)))
    sequence.images[0, 8:10] = 1  # a second image, behind the first answer
    labels = torch.full_like(sequence.images, -100)
    labels[0, 6], labels[1, 11] = 7, 7
    with noted(monkeypatch) as left:
        llm(replace(sequence, labels=labels, pruning=Pruning({1: Cut(0.5, first, "before")})))
    assert left[1].long().tolist() == [[1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]]


@torch.no_grad()
def test_a_token_that_has_left_keeps_the_hidden_state_that_it_left_with(monkeypatch):
    llm, seen = make("llama"), {}

    def look(hidden, call):
        seen.setdefault(hidden.shape[1], hidden)
        return hidden

    sequence = alone(rows(llm), 1)
    with noted(monkeypatch) as left, llm.around_layers({i: LayerVisitor(after=look) for i in range(DEPTH)}):
        gone = llm.hidden(replace(sequence, pruning=twice()))
    before_first = seen[14][0, ~left[1][0]]  # of the first layer
    normed = llm.model.get_decoder().norm(before_first)
    torch.testing.assert_close(gone[0, ~left[1][0]], normed, rtol=0, atol=1e-5)


@torch.no_grad()
def test_visitors_are_told_what_is_left():
    llm, calls = make("llama"), {}

    def note(layer):
        def change(hidden, call):
            calls[layer] = (hidden.shape[1], call.samples.tolist(), call.columns.tolist())
            return hidden

        return LayerVisitor(before=change)

    cut = Pruning({1: Cut(0.5, first, "before")})
    sequence = replace(rows(llm), pruning=cut, visitors={layer: note(layer) for layer in range(DEPTH)})
    llm(sequence)
    assert calls[0][0] == 14
    assert (
        calls[1]
        == calls[3]
        == (
            10,
            [[-1] * 4 + [0] * 6, [1] * 10, [-1] * 5 + [2] * 5],
            calls[1][2],
        )
    )
    assert calls[1][2][1] == [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_gradients_are_those_of_closed_tokens_also_where_layers_are_computed_again(mode, monkeypatch):
    llm = make("llama")
    sequence = rows(llm).end_to_end()[0]
    with noted(monkeypatch) as left:
        llm(replace(sequence, pruning=twice("next")))
    stay = left[3]

    def gradients(logits):
        llm.zero_grad()
        logits[stay].square().mean().backward(retain_graph=True)
        return {name: p.grad for name, p in llm.named_parameters() if p.grad is not None}

    expected = gradients(closed(llm, sequence, left))
    recompute(llm.layers(), mode)
    found = gradients(llm(replace(sequence, pruning=twice("next"))))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_positions_that_look_ahead_and_gates_go_with_their_tokens(monkeypatch):
    llm = make("llama")
    sequence = rows(llm).end_to_end()[0]
    blocks = torch.where(sequence.is_image, 0, -1)
    blocks[0, 9:] = torch.where(blocks[0, 9:] >= 0, 1, -1)
    ahead = replace(sequence, blocks=blocks)
    with torch.no_grad(), noted(monkeypatch) as left:
        found = llm(replace(ahead, pruning=twice()))
        assert (found - closed(llm, ahead, left))[left[3]].abs().max() < 1e-5
        gated = replace(ahead, log_gate=torch.linspace(-1, 0, sequence.images.shape[1])[None])
        assert not llm(replace(gated, pruning=twice()))[left[3]].isnan().any()


@pytest.mark.parametrize("family", LLMS)
def test_families_that_cannot_are_refused(family):
    llm = make(family)
    if family not in REFUSED:
        assert llm.capabilities.prunes
        assert layout_of(llm, "packed", looks_ahead=False, gated=False, pruning=twice()) == "packed"
    else:
        with pytest.raises(CompositionError, match=rf"^E-ATTN \[pruner x llm\]: {family} .*\n  fix: set pruner=none"):
            layout_of(llm, "padded", looks_ahead=False, gated=False, pruning=twice())
    if family in FAMILIES:
        assert llm.capabilities.moves_positions == (family not in EMBEDDED)


@pytest.mark.parametrize("family", EMBEDDED)
def test_positions_in_embeddings_cannot_move_up(family):
    with pytest.raises(CompositionError, match=r"^E-STACK \[pruner x llm\]: .*\n  fix: set pruner.positions=preserve"):
        layout_of(make(family), "packed", looks_ahead=False, gated=False, pruning=twice(compact=True))


def test_what_cannot_leave_is_an_error_that_says_why():
    llm = make("llama")
    sequence = alone(rows(llm), 1)
    for layer in (0, DEPTH):
        with pytest.raises(ValueError, match=f"before layer {layer}, but this llm has the layers 0 to 3"):
            llm(replace(sequence, pruning=Pruning({layer: Cut(0.5, first, "before")})))
    passing = pruning.Passing(sequence, twice(), Places(*sequence.numbered()))
    for past, new in ((0, 4), (4, 10), (14, 1)):
        with pytest.raises(
            ValueError, match=f"is read at once, and once; {new} positions of 14 were read after {past}"
        ):
            passing.begin(replace(RowPlan.of(sequence), past=past), sequence.embeds[:, :new])
    with pytest.raises(ValueError, match="cannot be kept in a static cache"):
        llm.generate(replace(sequence, pruning=twice()), cache_implementation="static", **OPTIONS)
    assert not any("forward" in vars(layer) for layer in llm.layers())  # nothing stays behind
