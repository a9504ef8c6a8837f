"""Attention that is read while an llm attends: that of transformers' eager attention, family by family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface

from beni.llm import attention_reads, probes
from beni.llm.attention_reads import Reads, read_attention, weights
from beni.llm.hf import HFLlm
from beni.types import Sequence
from support.decoders import FAMILIES, make
from support.families import EAGER, LLMS

LENGTHS = (11, 7, 9)
PLACES = (torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 10, 6, 1, 2, 8]))


def of_family(family):
    """A decoder of ``support.families``, with large weights."""
    torch.manual_seed(1)
    llm = HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": family, **LLMS[family]},
        attn_implementation="eager" if family in EAGER else "sdpa",
        tokenizer="embedded",
    )
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return llm.eval()


def padded(llm, **fields):
    """Three rows, padded on the right."""
    torch.manual_seed(3)
    ids = torch.randint(llm.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return replace(Sequence.plain(llm.embed(ids).detach()), mask=mask, **fields)


def eager(llm, sequence):
    """The attention of every layer, as transformers writes it out: (layer, row, head, query, key)."""
    llm.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = llm.model(
            inputs_embeds=sequence.embeds,
            attention_mask=sequence.mask,
            position_ids=sequence.position_ids,
            use_cache=False,
            output_attentions=True,
        )
    return torch.stack(out.attentions)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_neox", "phi3", "granite", "cohere", "olmo2", "gemma3_text"])
def test_what_is_read_is_the_eager_attention_of_transformers(family):
    llm = make(family).eval() if family in FAMILIES else of_family(family)
    assert llm.capabilities.shows_attention
    sequence = padded(llm)
    whole, (rows, columns) = eager(llm, sequence), PLACES
    for last in (1, 2, 7):
        read = llm.attended(sequence, PLACES, last)
        expected = whole[-last:, rows, :, columns].mean((1, 2))
        torch.testing.assert_close(read.weights, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(read.weights.sum(1), torch.ones(len(rows)), atol=1e-5, rtol=0)
    assert expected.std() > 0.05  # far from uniform: nothing is compared by chance


def test_a_pass_in_which_attention_is_read_gives_what_any_other_gives():
    for family in ("llama", "gemma2"):
        llm = make(family).eval()
        sequence = padded(llm)
        real = sequence.real
        torch.testing.assert_close(
            llm.attended(sequence, PLACES, 1).hidden[real], llm.hidden(sequence).detach()[real], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_gates_and_blocks_are_in_what_is_read(softcap):
    """A closed key is attended to with 0, one of weight k as much as k keys, and a later one of the block too."""
    torch.manual_seed(0)
    q, k = torch.randn(4, 1, 8), torch.randn(2, 6, 8)
    allowed = torch.tensor([[True, True, True, False, True, False]])
    gates = torch.tensor([0.0, -torch.inf, 3.0, 0.0, 0.0, 0.0]).clone()
    gates[2] = torch.tensor(3.0).log()
    ours = weights(q, k, allowed, None, softcap, gates)[:, 0]
    logits = (q @ k.repeat_interleave(2, 0).transpose(1, 2))[:, 0] * 8**-0.5
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    raw = logits.exp() * torch.tensor([1.0, 0.0, 3.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(ours, raw / raw.sum(1, keepdim=True))
    llm = make("llama").eval()
    blocks = torch.full((3, 11), -1)
    blocks[0, 2:6] = 0
    gated = padded(llm, blocks=blocks, log_gate=torch.zeros(3, 11).index_fill_(1, torch.tensor([1]), -torch.inf))
    read = llm.attended(gated, PLACES, 2).weights
    assert (read[0, 4:6] > 0).all()  # place 3 of the first row sees to the end of its block
    assert (read[0, 6:] == 0).all()
    assert (read[:, 1] == 0).all()
    torch.testing.assert_close(read.sum(1), torch.ones(6))


@pytest.mark.parametrize("family", ["gptj", "bloom", "mamba"])
def test_a_family_that_keeps_its_attention_to_itself_is_found_out(family):
    assert not of_family(family).capabilities.shows_attention


def test_an_attention_that_is_computed_otherwise_is_not_shown(monkeypatch):
    """A family whose own attention adds something that beni's does not know, such as sinks."""
    llm = make("llama").eval()

    def doubled(*arguments, **named):
        out, _ = attention_reads.row_attention(*arguments, **named)
        return 2 * out, None

    AttentionInterface.register("doubled", doubled)
    assert probes.shows_attention(llm)
    monkeypatch.setattr(llm, "attn_implementation", "doubled")
    assert not probes.shows_attention(llm)


def test_reading_is_refused_where_it_would_be_wrong():
    llm = make("llama").eval()
    packed, _ = padded(llm).end_to_end()
    with pytest.raises(ValueError, match="these samples are packed"):
        llm.attended(packed, PLACES, 1)
    with pytest.raises(ValueError, match="did not pass it on"):
        read_attention(llm, *(torch.zeros(1, 2, 3, 4),) * 3, None)


def test_nothing_is_read_of_no_layers():
    assert Reads(PLACES, 0).mean() is None
    llm = make("llama").eval()
    assert llm.attended(padded(llm), PLACES, 0).weights is None


def test_afterwards_the_llm_attends_as_before():
    llm = make("llama").eval()
    sequence = padded(llm)
    before = llm(sequence)
    llm.attended(sequence, PLACES, 1)
    assert llm(sequence).equal(before)


def test_layers_that_are_compiled_are_not_compiled_once_more():
    llm = make("llama").eval()
    sequence = padded(llm)
    expected = llm.attended(sequence, PLACES, 2).weights

    def never(graph, inputs):
        raise AssertionError("compiled")

    for layer in llm.layers():
        layer.compile(backend=never)
    assert llm.capabilities.shows_attention
    assert llm.attended(sequence, PLACES, 2).weights.equal(expected)
