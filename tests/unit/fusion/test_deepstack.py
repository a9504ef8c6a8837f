"""DeepStack: what Qwen3-VL adds, where it adds it, and nothing where there is nothing to add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from beni.config.compose import compose
from beni.errors import CompositionError, ConfigError
from beni.fusion.inline import InlineFusion
from beni.model.build import build
from beni.model.costing.table import propagate
from beni.types import LayerCall, Sequence
from beni.types.visual import centres
from beni.views.deepstack import sampled
from support.families import LLMS
from support.fusions import SPEC, family, fusion_of, images_of, rows_of, spec_for
from support.options import node
from support.shrink import shrink_stage

ROWS = (".#..", "#..#..", "...", "##.")
COUNT = 5
TOKENS = spec_for("deepstack")
OPTIONS = ("deepstack", "deepstack_views")
VIEWS = ("views=deepstack", "fusion=deepstack_views")
SIX = "llm.architecture.num_hidden_layers=6"
RANDOM = ("vision=siglip", "vision.weights=random", "llm.weights=random")
ROOM = ("llm.architecture.max_position_embeddings=2048", "template.max_length=2048")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def images(option="deepstack", seed=1):
    return images_of(COUNT, spec_for(option), seed)


def changed(visual, change):
    """The tokens with what is added of them changed."""
    fields = {"levels": visual.levels, "deep": visual.deep}
    return replace(visual, **{name: change(made) for name, made in fields.items() if made is not None})


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


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_sets_of_zero_leave_every_family_as_inline_does_and_others_do_not(name):
    llm, visual = family(name, num_hidden_layers=3), images("deepstack_views")
    fusion = fusion_of("deepstack_views", llm)
    text = rows_of(llm, fusion, *ROWS)
    inline = InlineFusion(SPEC, llm.hidden_size, image_attention="causal", out_norm="none", match_text_rms=False)
    expected = llm(inline(text, visual))
    assert llm(fusion(text, changed(visual, torch.zeros_like))).equal(expected)
    assert not llm(fusion(text, visual)).equal(expected)


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_a_sample_reads_the_same_padded_packed_and_alone_with_tokens_left_out(option):
    llm, visual = family("llama", num_hidden_layers=3), images(option)
    fusion = fusion_of(option, llm)
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


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_cached_generation_says_what_whole_passes_say(name, option):
    llm, visual = family(name, num_hidden_layers=3), images(option)
    fusion = fusion_of(option, llm)
    text = rows_of(llm, fusion, *ROWS)
    said = llm.generate(fusion(text, visual), **GREEDY)
    assert not said.equal(llm.generate(fusion(text, changed(visual, torch.neg)), **GREEDY))
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
        ((*VIEWS, "fusion.sets=3"), "E-LEVELS"),
        (("fusion=deepstack_views",), "E-LEVELS"),
        (VIEWS, "E-PLACE"),
        ((*VIEWS, SIX, "selector=random"), "E-GRID"),
        ((*VIEWS, SIX, "resampler=perceiver"), "E-GRID"),
        ((*VIEWS, SIX, "selector=gate_gumbel"), "E-GATE"),
    ],
)
def test_what_cannot_be_stacked_is_refused(overrides, code):
    run = compose([*RANDOM, "fusion=deepstack", *overrides] if VIEWS[1] not in overrides else [*RANDOM, *overrides])
    with pytest.raises(CompositionError, match=rf"^{code} \[\w+ x \w+\]: .*deepstack.*\n  fix: "):
        propagate(run)


def test_levels_behind_a_pixel_shuffle_are_blocks_of_each_level(tiny_run):
    run = tiny_run("fusion=deepstack", "fusion.sets=1", "vision.levels=[0,1]", "resampler=pixel_shuffle")
    run["vision"]["image_size"] = run["vision"]["architecture"]["image_size"] = 48
    model = propagate(run)
    assert model.specs["vision"].levels == 2 * 32
    assert model.specs["llm"].levels == 2 * 4 * 32
    assert model.fusion.mergers[0].fc1.in_features == 2 * 4 * 32


@pytest.mark.parametrize("fusion", ["inline", "flamingo", "hybrid"])
def test_tokens_of_tiles_that_no_layer_would_read_are_refused(fusion):
    with pytest.raises(
        CompositionError, match=r"^E-STACK \[views x fusion\]: .*deeper.*\n  fix: set fusion=deepstack_v"
    ):
        propagate(compose([*RANDOM, "views=deepstack", f"fusion={fusion}"]))


def test_canvases_of_different_numbers_of_tiles_are_refused():
    for canvases in ("[[2,2],[1,2]]", "[[2]]", "[]"):
        with pytest.raises(ConfigError, match=r"views.canvases=.*same number of tiles\n  fix: set 'views.canvases"):
            propagate(compose([*RANDOM, *VIEWS, f"views.canvases={canvases}"]))


@pytest.mark.parametrize("sampling", ["2d", "1d", "grid"])
@pytest.mark.parametrize("canvas", [(2, 2), (1, 3), (3, 2)])
def test_every_token_of_a_tile_is_in_one_set(sampling, canvas):
    count, grid = canvas[0] * canvas[1], (2, 4)
    tokens = torch.arange(count * 8.0).view(count, 8, 1)
    sets = sampled(tokens, canvas, grid, sampling)
    assert sets.shape == tokens.shape
    assert sets.flatten().sort().values.equal(tokens.flatten())


def test_a_set_sampled_in_two_dimensions_lies_where_the_whole_picture_s_tokens_lie():
    """The features are the places of the tokens; in a cell of the coarse grid, each set has one of its finer places."""
    canvas, grid = (2, 3), (4, 2)
    places = centres((8, 6)).view(2, 4, 3, 2, 2).transpose(1, 2).reshape(6, 8, 2)
    sets = sampled(places, canvas, grid, "2d")
    coarse = centres(grid)
    assert ((sets - coarse).abs() < torch.tensor([0.5 / 4, 0.5 / 2])).all()
    torch.testing.assert_close(sets.mean(0), coarse[0])
    assert not ((sampled(places, canvas, grid, "1d") - coarse).abs() < torch.tensor([0.5 / 4, 0.5 / 2])).all()


def test_sets_are_as_large_as_the_tokens_of_the_text_are_made():
    llm, visual = family("llama", num_hidden_layers=3), images("deepstack_views")
    fusion = fusion_of("deepstack_views", llm, match_text_rms=True, out_norm="rmsnorm")
    fusion.calibrate(torch.randn(50, llm.hidden_size) * 0.02, visual)
    text = rows_of(llm, fusion, *ROWS)
    fused = fusion(text, visual)
    hidden = torch.zeros_like(fused.embeds)
    added = fused.visitors[0].after(hidden, LayerCall(*fused.numbered(), {}))
    expected = fusion.inline.norm(visual.deep[..., : llm.hidden_size]) * fusion.inline.scale
    torch.testing.assert_close(added[fused.is_image], expected.flatten(0, 1))


@torch.no_grad()
def test_in_a_model_tiles_take_no_position_and_change_the_answer(tiny_run, steps_of):
    run = tiny_run(*ROOM, "llm.architecture.num_hidden_layers=4", "vision.architecture.patch_size=6")
    run["views"] = shrink_stage("views", "deepstack", node("views", "deepstack"))
    run["fusion"] = shrink_stage("fusion", "deepstack_views", node("fusion", "deepstack_views"))
    model = build(run).eval()
    batch = steps_of(run, model)[0][0]
    assert model.specs["llm"].deep == 2 * model.llm.hidden_size
    assert int((batch.input_ids == model.config.image_token_id).sum()) == 16 * len(batch.layouts)
    tiles = torch.arange(3).repeat(len(batch.layouts)) > 0
    pixels = torch.where(tiles[:, None, None, None], -batch.pixels, batch.pixels)
    out, other = (model(**replace(batch, pixels=one).model_inputs()) for one in (batch.pixels, pixels))
    assert (out.logits != other.logits).any(1).all()
