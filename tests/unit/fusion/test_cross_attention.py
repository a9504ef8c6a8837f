"""Fusions by cross-attention in llms of many families: nothing while gates are closed, the same however it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.types import Sequence
from support.families import LLMS
from support.fusions import family, fusion_of, images_of, rows_of

OPTIONS = ("flamingo", "idefics", "mllama", "hyper")
BLOCKS = OPTIONS[:3]
TYPICAL = ("flamingo", "mllama")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
ROWS = (".#..", "#..#..", "...", "##.")
COUNT = sum(row.count("#") for row in ROWS)


def padded(llm, fusion, rows=ROWS):
    return rows_of(llm, fusion, *rows)


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize("option", TYPICAL)
@torch.no_grad()
def test_closed_gates_leave_every_family_as_it_is(option, name):
    llm = family(name)
    fusion = fusion_of(option, llm, opened=False)
    text = padded(llm, fusion)
    fused = fusion(text, images_of(COUNT))
    bare = replace(fused, visitors={})
    assert llm(fused).equal(llm(bare))
    packed = fused.end_to_end()[0]
    if llm.capabilities.packed:
        assert llm(packed).equal(llm(replace(packed, visitors={})))
    fusion = fusion_of(option, llm)
    opened = fusion(text, images_of(COUNT))
    assert not llm(opened).equal(llm(replace(opened, visitors={})))


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize("option", TYPICAL)
@torch.no_grad()
def test_cached_generation_says_what_whole_passes_say(option, name):
    llm = family(name)
    fusion, visual = fusion_of(option, llm), images_of(COUNT)
    text = padded(llm, fusion)
    said = llm.generate(fusion(text, visual), **GREEDY)
    assert not said.equal(llm.generate(fusion(text, images_of(COUNT, seed=9)), **GREEDY))
    first = 0
    for row, tokens in zip(range(len(ROWS)), said, strict=True):
        real, count = text.real[row], ROWS[row].count("#")
        own = text.embeds[row, real][None]
        images = text.images[row, real][None]
        for token in tokens:
            alone = replace(Sequence.plain(own), images=images)
            shown = visual.select(torch.arange(first, first + count)) if count else None
            assert llm(fusion(alone, shown))[0, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)
            images = torch.cat([images, torch.full((1, 1), -1)], 1)
        first += count


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_beams_read_the_image_of_their_prompt(option):
    llm = family("llama")
    fusion, visual = fusion_of(option, llm), images_of(COUNT)
    together = llm.generate(fusion(padded(llm, fusion), visual), num_beams=3, **GREEDY)
    first = 0
    for row, tokens in zip(ROWS, together, strict=True):
        count = row.count("#")
        shown = visual.select(torch.arange(first, first + count)) if count else None
        alone = llm.generate(fusion(padded(llm, fusion, (row,)), shown), num_beams=3, **GREEDY)
        assert alone[0].equal(tokens)
        first += count


@pytest.mark.parametrize("option", BLOCKS)
@torch.no_grad()
def test_keys_and_values_are_made_once_in_generation(option):
    llm = family("llama")
    fusion, calls = fusion_of(option, llm), []
    fusion.layers()[0].attention.xk.register_forward_hook(lambda *_: calls.append(1))
    llm.generate(fusion(padded(llm, fusion), images_of(COUNT)), **GREEDY)
    assert len(calls) == 1
    with torch.enable_grad():  # where activations may be computed again nothing is kept
        fused = fusion(padded(llm, fusion), images_of(COUNT))
    llm(fused)
    llm(fused)
    assert len(calls) == 3


@pytest.mark.parametrize("sees", ["latest", "all"])
@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_a_sample_reads_the_same_padded_packed_and_alone(option, sees):
    llm = family("llama")
    fusion, visual = fusion_of(option, llm, sees=sees), images_of(COUNT)
    visual.mask[1, 2:] = False
    text = padded(llm, fusion)
    left = llm(fusion(text, visual))[text.real]
    packed = llm(fusion(text.end_to_end()[0], visual))[0]
    torch.testing.assert_close(packed, left, rtol=1e-5, atol=1e-5)
    first, alone = 0, []
    for row in ROWS:
        count = row.count("#")
        shown = visual.select(torch.arange(first, first + count)) if count else None
        alone.append(llm(fusion(padded(llm, fusion, (row,)), shown))[0])
        first += count
    torch.testing.assert_close(torch.cat(alone), left, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def changed_by(fusion, llm, text, visual, image):
    """Positions that change with an image."""
    other = visual.x.clone()
    other[image] += 1
    before, after = (llm(fusion(text, visual.with_features(x))) for x in (visual.x, other))
    return (before != after).any(-1)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_image_is_seen_from_its_place_on_and_the_latest_only_until_the_next(option):
    llm = family("llama", num_hidden_layers=1)  # with more, later text reads what earlier text has seen
    text = rows_of(llm, fusion_of(option, llm), ".#.#.", "#.")
    seen = {}
    for sees in ("latest", "all"):
        fusion = fusion_of(option, llm, sees=sees)
        if sees == "latest" and option in BLOCKS:  # attention carries on what is seen: only what blocks do is left
            for name, parameter in llm.named_parameters():
                if "o_proj" in name:
                    parameter.data.zero_()
        seen[sees] = [changed_by(fusion, llm, text, images_of(3), image).tolist() for image in range(3)]
    no, yes = [False] * 5, [True] * 5
    assert seen["latest"][0] == [[False, True, True, False, False], no]
    assert seen["all"][0] == [[False, *yes[:4]], no]
    for sees in ("latest", "all"):
        assert seen[sees][1] == [[False, False, False, True, True], no]
        assert seen[sees][2] == [no, [False, False, False, True, True]]


@pytest.mark.parametrize("sees", ["latest", "all"])
@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_tokens_that_are_dropped_or_closed_are_as_though_they_were_not_there(option, sees):
    llm = family("llama")
    fusion, visual = fusion_of(option, llm, sees=sees), images_of(COUNT)
    kept = torch.ones(COUNT, 4, dtype=torch.bool)
    kept[0, 1:3] = kept[2, :3] = False
    kept[3] = False  # nothing is left of this image
    text = padded(llm, fusion)
    fewer = llm(fusion(text, visual.drop(kept)))
    gates = torch.where(kept, 0.0, -torch.inf)
    torch.testing.assert_close(llm(fusion(text, replace(visual, log_gate=gates))), fewer, rtol=1e-5, atol=1e-5)
    other = visual.with_features(torch.where(kept[..., None], visual.x, 7.0))
    torch.testing.assert_close(llm(fusion(text, other.drop(kept))), fewer, rtol=0, atol=0)
    assert not llm(fusion(text, visual)).equal(fewer)


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_a_gate_weighs_a_token_as_often_as_it_says(option):
    llm = family("llama")
    fusion, visual = fusion_of(option, llm), images_of(COUNT)
    text = padded(llm, fusion)
    twice = visual.gather(torch.tensor([[0, 1, 2, 3, 3]] * COUNT))
    gates = torch.tensor([1.0, 1.0, 1.0, 2.0]).log().expand(COUNT, 4)
    gated = llm(fusion(text, replace(visual, log_gate=gates)))
    torch.testing.assert_close(gated, llm(fusion(text, twice)), rtol=1e-5, atol=1e-5)


def test_gates_and_features_get_the_gradient_of_finite_differences():
    llm = family("gpt2").double()  # others compute norms in fp32
    fusion = fusion_of("flamingo", llm, sees="all").double()
    text = padded(llm, fusion)
    text = replace(text, embeds=text.embeds.double())
    visual = images_of(COUNT)
    x, gates = visual.x.double(), torch.full((COUNT, 4), -0.5).double()

    def loss(x, gates):
        fused = fusion(text, replace(visual.with_features(x), log_gate=gates))
        return llm(fused)[text.real].square().sum()

    x.requires_grad_()
    gates.requires_grad_()
    loss(x, gates).backward()
    for leaf, other in ((x, lambda step: loss(x + step, gates)), (gates, lambda step: loss(x, gates + step))):
        step = torch.randn(leaf.shape, dtype=torch.double, generator=torch.Generator().manual_seed(3)) * 1e-5
        with torch.no_grad():
            slope = (other(step) - other(-step)) / 2
        torch.testing.assert_close((leaf.grad * step).sum(), slope, rtol=1e-4, atol=1e-12)
