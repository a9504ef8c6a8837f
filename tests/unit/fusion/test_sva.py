"""Aggregators inside the llm: nothing at first, each position its own cell, the same however it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.config.compose import compose
from beni.data.batch.collate import collate
from beni.errors import CompositionError
from beni.fusion.inline import InlineFusion
from beni.model.build import build
from beni.model.costing.table import propagate
from beni.types import LayerCall, Sequence, VisualTokens
from support.families import LLMS
from support.fusions import SPEC, family, fusion_of, images_of, rows_of, spec_for
from support.small_model import small_run

ROWS = (".#..", "#..#..", "...", "##.")
COUNT = 5
TOKENS = spec_for("sva")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def images(seed=1):
    return images_of(COUNT, TOKENS, seed)


def one_by_one(visual):
    """(row, images of it) of each sample of ROWS."""
    first = 0
    for row in ROWS:
        count = row.count("#")
        yield row, visual.select(torch.arange(first, first + count)) if count else None
        first += count


def darker(visual, number, places):
    """The tokens with some of one source negated."""
    sources = list(visual.sources)
    x = sources[number].x.clone()
    x[:, places] *= -1
    sources[number] = sources[number].with_features(x)
    return replace(visual, sources=tuple(sources))


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_fresh_aggregators_leave_every_family_as_inline_does(name):
    llm, visual = family(name, num_hidden_layers=3), images()
    fusion = fusion_of("sva", llm, opened=False)
    assert list(fusion.blocks) == ["0", "1"]
    text = rows_of(llm, fusion, *ROWS)
    inline = InlineFusion(SPEC, llm.hidden_size, image_attention="causal", out_norm="none", match_text_rms=False)
    expected = llm(inline(text, visual))
    assert llm(fusion(text, visual)).equal(expected)
    assert not llm(fusion_of("sva", llm, opened=False, init="torch")(text, visual)).equal(expected)


@torch.no_grad()
def test_a_position_reads_its_own_cell_of_each_source_and_the_overview():
    llm, visual = family("llama", num_hidden_layers=3), images()
    fusion = fusion_of("sva", llm)
    fused = fusion(rows_of(llm, fusion, *ROWS), visual)
    call = LayerCall(*fused.numbered(), {})

    def given(tokens):
        return fusion(rows_of(llm, fusion, *ROWS), tokens).visitors[0].after(fused.embeds, call)

    before = given(visual)
    assert before[~fused.is_image].equal(fused.embeds[~fused.is_image])
    moved = (given(darker(visual, 1, [6, 7])) != before).any(-1)  # of the second row of a 4x4 grid
    assert moved[fused.is_image].view(COUNT, 4).tolist() == [[False, True, False, False]] * COUNT
    moved = (given(darker(visual, 0, [3])) != before).any(-1)  # whose mean is shown to all
    assert moved[fused.is_image].all()


@torch.no_grad()
def test_of_one_key_only_the_value_is_read():
    """With one token in the cell of the only source, queries and keys of attention say nothing."""
    llm = family("llama", num_hidden_layers=3)
    spec = replace(TOKENS, sources=TOKENS.sources[:1])
    visual = images_of(COUNT, spec)
    fusion = fusion_of("sva", llm)
    fusion.blocks["0"].attention.keys = fusion.blocks["0"].attention.keys[:1]
    fusion.blocks["0"].attention.values = fusion.blocks["0"].attention.values[:1]
    fused = fusion(rows_of(llm, fusion, *ROWS), visual)
    call = LayerCall(*fused.numbered(), {})
    before = fused.visitors[0].after(fused.embeds, call)
    for linear in (fusion.blocks["0"].attention.query[1], fusion.blocks["0"].attention.keys[0][1]):
        linear.weight.neg_()
    torch.testing.assert_close(fused.visitors[0].after(fused.embeds, call), before, rtol=1e-5, atol=1e-6)
    fusion.blocks["0"].attention.values[0][1].weight.neg_()
    assert not torch.allclose(fused.visitors[0].after(fused.embeds, call), before, rtol=1e-2)


@torch.no_grad()
def test_a_sample_reads_the_same_padded_packed_and_alone():
    llm, visual = family("llama", num_hidden_layers=3), images()
    fusion = fusion_of("sva", llm)
    text = rows_of(llm, fusion, *ROWS)
    left = llm(fusion(text, visual))[text.real]
    torch.testing.assert_close(llm(fusion(text.end_to_end()[0], visual))[0], left, rtol=1e-5, atol=1e-5)
    alone = [llm(fusion(rows_of(llm, fusion, row), shown))[0] for row, shown in one_by_one(visual)]
    torch.testing.assert_close(torch.cat(alone), left, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_generation_says_of_each_prompt_what_it_says_alone_and_greedily_what_whole_passes_say(name, beams):
    llm, visual = family(name, num_hidden_layers=3), images()
    fusion, calls = fusion_of("sva", llm), []
    text = rows_of(llm, fusion, *ROWS)
    handle = fusion.blocks["0"].register_forward_hook(lambda *_: calls.append(1))
    said = llm.generate(fusion(text, visual), num_beams=beams, **GREEDY)
    handle.remove()
    assert len(calls) == 1  # for the prompt alone
    assert not said.equal(llm.generate(fusion(text, darker(visual, 0, slice(None))), num_beams=beams, **GREEDY))
    for (row, shown), tokens in zip(one_by_one(visual), said, strict=True):
        asked = fusion(rows_of(llm, fusion, row), shown)
        assert llm.generate(asked, num_beams=beams, **GREEDY)[0].equal(tokens)
        own, stands = rows_of(llm, fusion, row).embeds, rows_of(llm, fusion, row).images
        for token in tokens if beams == 1 else ():
            assert llm(fusion(replace(Sequence.plain(own), images=stands), shown))[0, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)
            stands = torch.cat([stands, torch.full((1, 1), -1)], 1)


@torch.no_grad()
def test_closed_gates_of_a_source_are_as_though_their_tokens_were_not_there():
    llm, visual = family("llama", num_hidden_layers=3), images()
    fusion = fusion_of("sva", llm)
    text = rows_of(llm, fusion, *ROWS)
    gates = torch.zeros(COUNT, 16)
    gates[:, [0, 5, 15]] = -torch.inf
    first, second = visual.sources
    gated = replace(visual, sources=(first, replace(second, log_gate=gates)))
    closed = llm(fusion(text, gated))
    other = darker(gated, 1, [0, 5, 15])
    torch.testing.assert_close(llm(fusion(text, other)), closed, rtol=1e-5, atol=1e-5)
    assert not closed.equal(llm(fusion(text, visual)))


@torch.no_grad()
def test_ends_of_rows_ask_nothing():
    llm, visual = family("llama", num_hidden_layers=3), images()
    fusion = fusion_of("sva", llm)
    ends = VisualTokens.dense(torch.ones(COUNT, 4, 32), (2, 2))
    both = VisualTokens.cat([visual, replace(ends, size=ends.size * 0)])
    six = both.gather(torch.tensor([[0, 1, 4, 2, 3, 4]] * COUNT))
    text, laid = rows_of(llm, fusion, *ROWS), rows_of(llm, fusion, *ROWS, spec=replace(TOKENS, n=6))
    fused = fusion(laid, replace(six, sources=visual.sources))
    call = LayerCall(*fused.numbered(), {})
    after = fused.visitors[0].after(fused.embeds, call)[fused.is_image].unflatten(0, (COUNT, 6))
    plain = fusion(text, visual)
    expected = plain.visitors[0].after(plain.embeds, LayerCall(*plain.numbered(), {}))[plain.is_image]
    torch.testing.assert_close(after[:, [0, 1, 3, 4]].flatten(0, 1), expected)
    assert after[:, [2, 5]].equal(fused.embeds[fused.is_image].unflatten(0, (COUNT, 6))[:, [2, 5]])


@pytest.mark.parametrize("newline", [False, True])
@torch.no_grad()
def test_in_a_model_the_encoder_reaches_the_answer_through_the_aggregators_too(newline, tiny_run, steps_of):
    run = small_run(tiny_run, "fusion", "sva")
    run["views"]["newline"] = newline
    run["fusion"]["init"] = "torch"
    model = build(run).eval()
    batch = collate([steps_of(run, model).items(0, 0)[0][0]], "padded", 0)
    inputs = batch.model_inputs()
    visual = model.encode_images(batch.pixels)
    assert len(visual.sources) == len(model.specs["llm"].sources) == 1
    bare = {name: inputs[name] for name in ("input_ids", "labels", "attention_mask")}
    own, other = (
        model(**bare, images=replace(inputs["images"], visual=one)).logits for one in (visual, darker(visual, 0, [0]))
    )
    assert model(**inputs).logits.equal(own)
    assert not own.equal(other)


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (("resampler=none",), "E-STACK"),
        (("resampler=sva", "resampler.side=9", "views=internvl"), "E-STACK"),
        (("resampler=sva", "resampler.side=9", "fusion.num_heads=7"), "E-HEADS"),
        (("resampler=sva", "resampler.side=9", "llm.architecture.num_hidden_layers=1"), "E-PLACE"),
    ],
)
def test_what_it_cannot_read_or_reach_is_refused(overrides, code):
    run = compose(["vision=siglip", "vision.weights=random", "llm.weights=random", "fusion=sva", *overrides])
    with pytest.raises(CompositionError, match=rf"^{code} \[[\w x]+\]: .*\n  fix: "):
        propagate(run)
