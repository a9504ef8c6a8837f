"""DeepStack: what Qwen3-VL adds, where it adds it, and nothing where there is nothing to add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from beni.config.compose import compose
from beni.errors import CompositionError
from beni.fusion.inline import InlineFusion
from beni.model.costing.table import propagate
from beni.types import Sequence
from support.families import LLMS
from support.fusions import SPEC, family, fusion_of, images_of, rows_of, spec_for

ROWS = (".#..", "#..#..", "...", "##.")
COUNT = 5
TOKENS = spec_for("deepstack")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def images(seed=1):
    return images_of(COUNT, TOKENS, seed)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "falcon"])
@torch.no_grad()
def test_it_adds_what_qwen3_vl_adds_after_the_same_layers(name):
    llm, visual = family(name, num_hidden_layers=3), images()
    fusion = fusion_of("deepstack", llm, sets=2)
    text = rows_of(llm, fusion, *ROWS)
    fused = fusion(text, visual)
    sets = visual.levels.flatten(0, 1).chunk(2, -1)
    handles = []
    for layer, merger, levels in zip(llm.layers()[:2], fusion.mergers, sets, strict=True):
        features = merger(levels)

        def added(_, __, out, features=features):
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = Qwen3VLTextModel._deepstack_process(None, hidden, text.is_image, features)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handles.append(layer.register_forward_hook(added))
    expected = llm(replace(fused, visitors={}))
    for handle in handles:
        handle.remove()
    assert llm(fused).equal(expected)
    assert not expected.equal(llm(replace(fused, visitors={})))


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_features_of_zero_leave_every_family_as_inline_does(name):
    llm, visual = family(name), images()
    fusion = fusion_of("deepstack", llm)
    for merger in fusion.mergers:
        merger.fc2.weight.zero_()
        merger.fc2.bias.zero_()
    text = rows_of(llm, fusion, *ROWS)
    inline = InlineFusion(SPEC, llm.hidden_size, image_attention="causal", out_norm="none", match_text_rms=False)
    assert llm(fusion(text, visual)).equal(llm(inline(text, visual)))


@torch.no_grad()
def test_a_sample_reads_the_same_padded_packed_and_alone_with_tokens_left_out():
    llm, visual = family("llama"), images()
    fusion = fusion_of("deepstack", llm)
    kept = torch.ones(COUNT, 4, dtype=torch.bool)
    kept[0, 1:3] = kept[2, :3] = False
    visual, text = visual.drop(kept), rows_of(llm, fusion, *ROWS)
    padded = fusion(text, visual)
    left = llm(padded)[padded.real]
    torch.testing.assert_close(llm(fusion(text.end_to_end()[0], visual))[0], left, rtol=1e-5, atol=1e-5)
    first, alone = 0, []
    for row in ROWS:
        count = row.count("#")
        shown = visual.select(torch.arange(first, first + count)) if count else None
        alone.append(llm(fusion(rows_of(llm, fusion, row), shown))[0])
        first += count
    torch.testing.assert_close(torch.cat(alone), left, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_cached_generation_says_what_whole_passes_say(name):
    llm, visual = family(name), images()
    fusion = fusion_of("deepstack", llm)
    text = rows_of(llm, fusion, *ROWS)
    said = llm.generate(fusion(text, visual), **GREEDY)
    assert not said.equal(llm.generate(fusion(text, replace(visual, levels=-visual.levels)), **GREEDY))
    first = 0
    for row, tokens in zip(range(len(ROWS)), said, strict=True):
        count = ROWS[row].count("#")
        shown = visual.select(torch.arange(first, first + count)) if count else None
        own, stands = (x[row, text.real[row]][None] for x in (text.embeds, text.images))
        for token in tokens:
            assert llm(fusion(replace(Sequence.plain(own), images=stands), shown))[0, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)
            stands = torch.cat([stands, torch.full((1, 1), -1)], 1)
        first += count


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (("vision.levels=[0,1]", "fusion.sets=5"), "E-LEVELS"),
        (("vision.levels=[0,1,2]", "llm.architecture.num_hidden_layers=2"), "E-PLACE"),
        (("vision.levels=[0,1,2]", "resampler=perceiver"), "E-LEVELS"),
    ],
)
def test_what_cannot_be_stacked_is_refused(overrides, code):
    run = compose(["vision=siglip", "vision.weights=random", "llm.weights=random", "fusion=deepstack", *overrides])
    with pytest.raises(CompositionError, match=rf"^{code} \[\w+ x \w+\]: .*deepstack.*\n  fix: "):
        propagate(run)


def test_levels_behind_a_pixel_shuffle_are_blocks_of_each_level(tiny_run):
    run = tiny_run("fusion=deepstack", "fusion.sets=1", "vision.levels=[0,1]", "resampler=pixel_shuffle")
    run["vision"]["image_size"] = run["vision"]["architecture"]["image_size"] = 48
    model = propagate(run)
    assert model.specs["vision"].levels == 2 * 32
    assert model.specs["llm"].levels == 2 * 4 * 32
    assert model.fusion.mergers[0].fc1.in_features == 2 * 4 * 32
