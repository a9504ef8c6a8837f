"""Visitors around decoder layers: told the truth, harmless where they change nothing, and right where they do."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import jaxtyping
import pytest
import torch
from torch import nn

from beni.llm.hf import HFLlm
from beni.measure.flops import count_flops
from beni.training.blocks import compile_blocks, recompute
from beni.types import LayerVisitor, Sequence
from support.families import EAGER, LLMS


def make(family, **fields):
    torch.manual_seed(0)
    return HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": family, **LLMS[family], **fields},
        attn_implementation="eager" if family in EAGER else "sdpa",
        tokenizer="embedded",
    ).eval()


def prompts(llm, lengths=(4, 7)):
    """Left-padded samples."""
    longest = max(lengths)
    ids = torch.randint(3, llm.vocab_size, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return replace(Sequence.plain(llm.embed(ids)), mask=mask, position_ids=positions, left_padded=True)


class Probe:
    """Notes what it sees, and changes nothing."""

    def __init__(self):
        self.seen = []

    def __call__(self, hidden, call):
        self.seen.append((hidden.detach().clone(), call))
        return hidden


OPTIONS = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 2}


@pytest.mark.parametrize("family", LLMS)
@torch.no_grad()
def test_a_probe_sees_every_layer_of_every_family_and_changes_no_bit(family):
    llm, before, after = make(family), [Probe(), Probe()], [Probe(), Probe()]
    sequence = prompts(llm)
    visitors = {i: LayerVisitor(before[i], after[i]) for i in range(2)}
    logits, hidden, said = llm(sequence), llm.hidden(sequence), llm.generate(sequence, **OPTIONS)
    with llm.around_layers(visitors):
        assert llm(sequence).equal(logits)
    assert llm(replace(sequence, visitors=visitors)).equal(logits)
    assert llm.hidden(replace(sequence, visitors=visitors)).equal(hidden)
    for one in (*before, *after):
        assert len(one.seen) == 3
    (found, call), (given, _) = after[0].seen[0], before[1].seen[0]
    assert found.equal(given)
    assert found.shape == (2, 7, 32)
    assert call.samples.tolist() == [[-1, -1, -1, 0, 0, 0, 0], [1] * 7]
    assert call.columns.tolist() == [[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert call.arguments.keys() & {"attention_mask", "position_ids", "past_key_values", "layer_past", "cache_params"}

    assert llm.generate(replace(sequence, visitors=visitors), **OPTIONS).equal(said)
    passes = [(tuple(h.shape), call.samples.tolist(), call.columns.tolist()) for h, call in after[1].seen[3:]]
    assert [shape for shape, _, _ in passes] == [(2, 7, 32), (2, 1, 32), (2, 1, 32)]
    assert passes[0][1:] == (call.samples.tolist(), call.columns.tolist())
    assert [samples for _, samples, _ in passes[1:]] == [[[0], [1]]] * 2
    assert [columns for _, _, columns in passes[1:]] == [[[4], [7]], [[5], [8]]]
    assert not any("forward" in vars(layer) for layer in llm.layers())  # nothing stays behind


def bent(hidden, call, weight):
    """A change with a parameter, another for each sample and each column."""
    return hidden + torch.tanh(hidden @ weight) * (1 + call.samples + 0.1 * call.columns)[..., None].to(hidden.dtype)


def visitors_of(weight):
    return {0: LayerVisitor(after=partial(bent, weight=weight)), 1: LayerVisitor(before=partial(bent, weight=weight))}


FEW = ("llama", "gpt2", "gemma2", "bloom", "mamba")
"""Blocks called by keyword and by position, that give a tensor and a tuple, with masks, alibi and a state."""


@pytest.mark.parametrize("family", FEW)
@torch.no_grad()
def test_greedy_generation_says_what_whole_passes_with_the_visitor_say(family):
    llm = make(family)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(32, 32, generator=generator)
    for parameter in llm.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    sequence = prompts(llm, (5, 7))
    options = OPTIONS | {"max_new_tokens": 4, "min_new_tokens": 4}
    plain = llm.generate(sequence, **options)
    said = llm.generate(replace(sequence, visitors=visitors_of(weight)), **options)
    assert not said.equal(plain)
    for row in range(2):
        own = sequence.embeds[row, sequence.real[row]][None]
        for token in said[row]:
            # as if the others of its batch were there: the visitor looks at the number of the sample
            whole = replace(Sequence.plain(own.expand(row + 1, -1, -1)), visitors=visitors_of(weight))
            assert llm(whole)[row, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)


@torch.no_grad()
def test_all_beams_of_a_prompt_are_its_sample():
    llm, probe = make("llama"), Probe()
    sequence = replace(prompts(llm), visitors={1: LayerVisitor(before=probe)})
    llm.generate(sequence, num_beams=3, **OPTIONS)
    assert [call.samples[:, -1].tolist() for _, call in probe.seen] == [[0, 0, 0, 1, 1, 1]] * len(probe.seen)


@torch.no_grad()
def test_a_prompt_that_looks_ahead_generates_with_its_own_sample_and_columns():
    llm, probe = make("llama"), Probe()
    sequence = prompts(llm)
    ahead = replace(sequence, blocks=torch.where(sequence.real, 0, -1), visitors={1: LayerVisitor(before=probe)})
    llm.generate(ahead, **OPTIONS)
    last = [pair for _, call in probe.seen for pair in zip(call.samples[:, -1], call.columns[:, -1], strict=True)]
    assert {(int(a), int(b)) for a, b in last} == {(0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (1, 8)}


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])  # others compute norms in fp32
def test_gradients_through_a_visitor_are_those_of_finite_differences(family):
    llm = make(family).double()
    sequence = prompts(llm)
    weight = (
        torch.randn(32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(2)) * 0.3
    ).requires_grad_()
    direction = torch.randn(32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(3))

    def loss(at):
        seen = replace(sequence, embeds=sequence.embeds.detach(), visitors=visitors_of(at))
        return llm(seen)[sequence.real].square().sum()

    loss(weight).backward()
    with torch.no_grad():
        slope = (loss(weight + 1e-5 * direction) - loss(weight - 1e-5 * direction)) / 2e-5
    assert abs(slope) > 1e-3
    torch.testing.assert_close((weight.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@contextmanager
def hooked(layers, weight, call):
    """The same change by plain hooks of torch."""
    first, second = layers
    handles = [
        first.register_forward_hook(lambda _, __, out: bent(out, call, weight)),
        second.register_forward_pre_hook(lambda _, given: (bent(given[0], call, weight), *given[1:])),
    ]
    yield
    for handle in handles:
        handle.remove()


ADAPTED = ("train.plan.llm=lora", "adapter=lora", "train.plan.vision=frozen")
PACKED = (*ADAPTED, "quantization=hqq", "quantization.group_size=32")


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
@pytest.mark.parametrize("overrides", [(), ADAPTED, PACKED], ids=["full", "lora", "hqq"])
def test_a_visited_model_has_the_loss_and_gradients_of_the_plain_formula(
    tiny_run, tiny_model, steps_of, absent, overrides, mode
):
    if overrides == PACKED:
        pytest.importorskip("hqq")
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) * 0.3

    def step(visits):
        model, own = tiny_model(*overrides), nn.Parameter(weight.clone())
        batch = steps_of(tiny_run(*overrides), model)[0][0]
        if visits:
            recompute(model.layers_with_gradient(), mode)
        probe = Probe()
        with model.llm.around_layers({0: LayerVisitor(before=probe)}):
            model(**batch.model_inputs())
        (_, call) = probe.seen[0]
        around = model.llm.around_layers(visitors_of(own)) if visits else hooked(model.llm.layers(), own, call)
        with around:
            loss = model(**batch.model_inputs()).loss
        loss.backward()  # after the visit
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), "weight": own.grad} | gradients

    found, expected = step(visits=True), step(visits=False)
    assert found.keys() == expected.keys()
    assert found["weight"].abs().max() > 0
    for name, gradient in expected.items():
        assert found[name].equal(gradient), name


def test_a_visitor_runs_once_where_its_layer_is_computed_again():
    llm, probe, calls = make("llama"), Probe(), []
    llm.layers()[1].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    recompute(llm.layers(), "full")
    sequence = prompts(llm)
    llm(replace(sequence, visitors={1: LayerVisitor(before=probe)})).sum().backward()
    assert (len(probe.seen), len(calls)) == (1, 2)


@torch.no_grad()
def test_samples_have_the_same_logits_packed_padded_and_alone():
    llm = make("llama")
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) * 0.3
    left = prompts(llm, (4, 7, 1))
    right = left.keep(left.real) if not left.left_padded else replace(left, left_padded=False).keep(left.real)
    packed, _ = left.end_to_end()
    dropped = left.real.clone()
    dropped[1, 2] = False
    for padded, row in ((left, packed), (right, packed), (left.keep(dropped), left.keep(dropped).end_to_end()[0])):
        visited = llm(replace(padded, visitors=visitors_of(weight)))
        assert not visited.equal(llm(padded))
        joined = llm(replace(padded, visitors=visitors_of(weight)).end_to_end()[0])
        torch.testing.assert_close(joined[0], visited[padded.real], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(joined, llm(replace(row, visitors=visitors_of(weight))), rtol=0, atol=0)


def test_a_dry_run_counts_what_visitors_compute():
    with torch.device("meta"):
        llm, weight, embeds = make("llama"), torch.empty(32, 32), torch.empty(1, 10, 32)
    plain = count_flops(llm.dry_run(embeds, 1))
    with llm.around_layers(visitors_of(weight)):
        assert count_flops(llm.dry_run(embeds, 1)) == plain + 2 * (2 * 10 * 32 * 32)


def test_positions_are_numbered_in_either_layout():
    embeds = torch.zeros(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    padded = replace(Sequence.plain(embeds), mask=mask)
    samples, columns = padded.numbered()
    assert samples.tolist() == [[0, 0, -1, -1], [1, 1, 1, 1]]
    assert columns[padded.real].tolist() == [0, 1, 0, 1, 2, 3]
    samples, columns = padded.end_to_end()[0].numbered()
    assert samples.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert columns.tolist() == [[0, 1, 0, 1, 2, 3]]


def test_visitors_of_a_sequence_stand_inside_those_of_a_block():
    llm, order = make("llama"), []

    def note(word):
        def change(hidden, call):
            order.append(word)
            return hidden

        return change

    own = {0: LayerVisitor(note("own before"), note("own after"))}
    with llm.around_layers({0: LayerVisitor(note("before"), note("after"))}):
        llm(replace(prompts(llm), visitors=own))
    assert order == ["before", "own before", "own after", "after"]
    llm(replace(prompts(llm), visitors=own))
    assert order[4:] == ["own before", "own after"]


def test_what_cannot_be_visited_is_an_error_that_says_why():
    llm = make("llama")
    with (
        pytest.raises(ValueError, match="layer 2, but this llm has the layers 0 to 1"),
        llm.around_layers({2: LayerVisitor()}),
    ):
        pass
    with pytest.raises(ValueError, match="layer -1, but"):
        llm(replace(prompts(llm), visitors={-1: LayerVisitor()}))
    shorter = {0: LayerVisitor(before=lambda hidden, call: hidden[:, 1:])}
    with pytest.raises(ValueError, match=r"a visitor made \(2, 6, 32\) of hidden states of the shape \(2, 7, 32\)"):
        llm(replace(prompts(llm), visitors=shorter))
    assert not any("forward" in vars(layer) for layer in llm.layers())


@pytest.fixture
def unchecked():
    """Without the checks of shapes, which only tests have and which cannot be compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of CPU code needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_layers_contain_their_visitors_and_are_compiled_once(mode, unchecked):
    torch._dynamo.reset()
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) * 0.3
    seen = {}
    for compiled in (False, True):
        llm, seen[compiled] = make("llama", num_hidden_layers=4), []
        if compiled:
            recompute(llm.layers(), mode)
            compile_blocks(llm.layers())
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(3):  # a step brings visitors of its own, with other tensors
            own = nn.Parameter(weight.clone())
            around = {i: LayerVisitor(before=partial(bent, weight=own)) for i in range(4)}
            loss = llm(replace(prompts(llm), visitors=around)).square().mean()
            loss.backward()
            seen[compiled] += [loss.detach(), own.grad]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert graphs == 1
    for ours, theirs in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
