"""Hybrid fusion: inline for the whole picture, cross-attention for its tiles, and each half alone where the other is
not there.
"""

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
from beni.types import Sequence
from beni.views.base import WHOLE
from support.families import LLMS
from support.fusions import SPEC, family, fusion_of, images_of, rows_of, spec_for
from support.options import node
from support.shrink import shrink_pruner, shrink_stage

ROWS = (".#..", "#..#..", "...", "##.")
COUNT = 5
TOKENS = spec_for("hybrid")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
TILES = ("views=internvl", "views.min_tiles=2", "views.max_tiles=3", "views.start=''", "views.end=''")
ROOM = ("llm.architecture.max_position_embeddings=2048", "template.max_length=2048")


def images(seed=1):
    return images_of(COUNT, TOKENS, seed)


def inline_of(llm, image_attention="causal"):
    return InlineFusion(SPEC, llm.hidden_size, image_attention=image_attention, out_norm="none", match_text_rms=False)


def overviews(visual):
    """The whole pictures alone."""
    return visual.gather(torch.arange(SPEC.n).expand(len(visual.x), -1))


def one_by_one(visual):
    """(row, images of it) of each sample of ROWS."""
    first = 0
    for row in ROWS:
        count = row.count("#")
        yield row, visual.select(torch.arange(first, first + count)) if count else None
        first += count


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_closed_gates_leave_every_family_as_inline_does_on_the_whole_picture_alone(name):
    llm, visual = family(name), images()
    fusion = fusion_of("hybrid", llm, opened=False)
    text = rows_of(llm, fusion, *ROWS)
    inline = llm(inline_of(llm)(text, overviews(visual)))
    assert llm(fusion(text, visual)).equal(inline)
    assert not llm(fusion_of("hybrid", llm)(text, visual)).equal(inline)


@pytest.mark.parametrize("image_attention", ["causal", "image", "prefix"])
@torch.no_grad()
def test_without_tiles_it_is_inline_with_its_gates_open(image_attention):
    llm, visual = family("llama"), images()
    fusion = fusion_of("hybrid", llm, image_attention=image_attention)
    text = rows_of(llm, fusion, *ROWS)
    expected = llm(inline_of(llm, image_attention)(text, overviews(visual)))
    for alone in (overviews(visual), replace(overviews(visual), whole=None), visual.drop(visual.whole)):
        assert llm(fusion(text, alone)).equal(expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
@torch.no_grad()
def test_cached_generation_says_what_whole_passes_say(name):
    llm, visual = family(name), images()
    fusion = fusion_of("hybrid", llm)
    said = llm.generate(fusion(rows_of(llm, fusion, *ROWS), visual), **GREEDY)
    other = visual.with_features(torch.where(visual.whole[..., None], visual.x, -visual.x))
    assert not said.equal(llm.generate(fusion(rows_of(llm, fusion, *ROWS), other), **GREEDY))
    for (row, shown), tokens in zip(one_by_one(visual), said, strict=True):
        text = rows_of(llm, fusion, row)
        own, stands = text.embeds, text.images
        for token in tokens:
            assert llm(fusion(replace(Sequence.plain(own), images=stands), shown))[0, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)
            stands = torch.cat([stands, torch.full((1, 1), -1)], 1)


@pytest.mark.parametrize("sees", ["latest", "all"])
@torch.no_grad()
def test_a_sample_reads_the_same_padded_packed_and_alone_with_tokens_left_out(sees):
    llm, visual = family("llama"), images()
    fusion = fusion_of("hybrid", llm, sees=sees)
    kept = torch.ones(COUNT, TOKENS.n, dtype=torch.bool)
    kept[0, :2] = kept[1, 5:] = kept[2, 1:4] = kept[4, 4:] = False
    kept[3, : SPEC.n] = False  # nothing of this whole picture is left, its tiles are
    visual, text = visual.drop(kept), rows_of(llm, fusion, *ROWS)
    padded = fusion(text, visual)
    left = llm(padded)[padded.real]
    torch.testing.assert_close(llm(fusion(text.end_to_end()[0], visual))[0], left, rtol=1e-5, atol=1e-5)
    alone = [llm(fusion(rows_of(llm, fusion, row), shown))[0] for row, shown in one_by_one(visual)]
    torch.testing.assert_close(torch.cat(alone), left, rtol=1e-5, atol=1e-5)
    rubbish = visual.with_features(torch.where(visual.mask[..., None], visual.x, 7.0))
    assert llm(fusion(text, rubbish))[padded.real].equal(left)


@torch.no_grad()
def test_tiles_are_seen_from_the_first_position_of_their_picture_that_is_left():
    llm = family("llama", num_hidden_layers=1)  # with more, later positions read what earlier ones have seen
    visual = images_of(2, TOKENS)
    kept = torch.ones(2, TOKENS.n, dtype=torch.bool)
    kept[0, 0] = kept[1, :3] = False
    visual = visual.drop(kept)
    for name, parameter in llm.named_parameters():
        if "o_proj" in name:  # only what blocks do is left
            parameter.data.zero_()
    seen = {}
    for sees in ("latest", "all"):
        fusion = fusion_of("hybrid", llm, sees=sees)
        text = rows_of(llm, fusion, ".#.#.")
        bare = llm(fusion(text, visual))
        for image in range(2):
            other = visual.x.clone()
            other[image, SPEC.n :] += 1
            changed = (llm(fusion(text, visual.with_features(other))) != bare).any(-1)[0]
            seen[sees, image] = "".join(".x"[int(one)] for one in changed)
    assert seen["all", 0] == ".xxxxxx"  # text, three of four tokens, text, one of four, text
    assert seen["latest", 0] == ".xxxx.."
    assert seen["all", 1] == seen["latest", 1] == ".....xx"


@torch.no_grad()
def test_a_gate_weighs_a_tile_as_often_as_it_says_and_a_token_of_the_text_as_inline_does():
    llm, visual = family("llama"), images()
    fusion = fusion_of("hybrid", llm)
    text = rows_of(llm, fusion, *ROWS)
    twice = visual.gather(torch.tensor([[*range(TOKENS.n), TOKENS.n - 1]] * COUNT))
    gates = torch.tensor([1.0] * (TOKENS.n - 1) + [2.0]).log().expand(COUNT, -1)
    gated = fusion(text, replace(visual, log_gate=gates))
    torch.testing.assert_close(llm(replace(gated, log_gate=None)), llm(fusion(text, twice)), rtol=1e-5, atol=1e-5)
    closed = torch.zeros(COUNT, TOKENS.n)
    closed[:, 1], closed[:, SPEC.n :] = -1.0, -torch.inf
    inline = inline_of(llm)(text, replace(overviews(visual), log_gate=closed[:, : SPEC.n]))
    torch.testing.assert_close(llm(fusion(text, replace(visual, log_gate=closed))), llm(inline), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_size_of_whole_pictures_is_measured_and_that_of_tiles_is_not():
    llm, visual = family("llama"), images()
    fusion = fusion_of("hybrid", llm, match_text_rms=True)
    assert fusion.calibrates
    words = torch.randn(50, llm.hidden_size) * 0.02
    fusion.calibrate(words, visual)
    expected = words.square().mean().sqrt() / overviews(visual).x.square().mean().sqrt()
    torch.testing.assert_close(fusion.inline.scale, expected)


@pytest.fixture
def tiled(tiny_run, steps_of):
    """tiled(*overrides) -> a run, its model and steps, of pictures in two or three tiles and an overview."""

    def make(*overrides):
        run = tiny_run(*TILES, *ROOM, "data.pictures_share=0.4", "data.text_share=0.3", *overrides)
        run["fusion"] = shrink_stage("fusion", "hybrid", node("fusion", "hybrid"))
        model = build(run).eval()
        return run, model, steps_of(run, model)

    return make


@torch.no_grad()
def test_in_a_model_the_tokens_of_the_overview_alone_take_positions(tiled):
    _, model, steps = tiled()
    batch = collate([steps.items(0, index)[0][0] for index in range(8)], "packed", 0)
    n = model.specs["connector"].n
    assert int((batch.input_ids == model.config.image_token_id).sum()) == n * len(batch.layouts)
    assert {len(layout.views) for layout in batch.layouts} <= {3, 4}
    for parameter in model.fusion.parameters():
        parameter.add_(0.3)
    out = model(**batch.model_inputs())
    counts = [len(layout.views) for layout in batch.layouts]
    tiles = torch.tensor([view < count - 1 for count in counts for view in range(count)])
    pixels = torch.where(tiles[:, None, None, None], -batch.pixels, batch.pixels)
    other = model(**replace(batch, pixels=pixels).model_inputs())
    changed, pictured = (out.logits != other.logits).any(1), torch.isin(out.samples, batch.owners)
    assert changed[pictured].all()
    assert not changed[~pictured].any()
    assert not pictured.all()


@pytest.mark.parametrize("views", ["single", "native", "s2", "internvl views.join=true", "idefics3 views.longest=1"])
def test_views_without_parts_of_a_picture_are_refused(views):
    run = compose([f"views={views.split()[0]}", *views.split()[1:], "fusion=hybrid", "llm.weights=random"])
    with pytest.raises(CompositionError, match=r"^E-STACK \[views x fusion\]: .*beside the text.*\n  fix: .*internvl"):
        propagate(run)


def test_views_without_a_whole_picture_are_refused():
    run = compose(["views=internvl", "views.thumbnail=false", "fusion=hybrid", "llm.weights=random"])
    with pytest.raises(CompositionError, match=r"^E-STACK \[views x fusion\]: .*no view of it\n  fix: set views.thumb"):
        propagate(run)


@pytest.mark.parametrize("option", ["anyres", "dragonfly_v1", "dragonfly_v2", "idefics2", "idefics3", "internvl"])
@torch.no_grad()
def test_views_that_cut_a_picture_lay_out_as_many_tokens_as_they_say_are_of_the_whole(option, tiny_run, steps_of):
    run = tiny_run(*ROOM, "vision.architecture.patch_size=6")
    run["views"] = shrink_stage("views", option, node("views", option))
    run["fusion"] = shrink_stage("fusion", "hybrid", node("fusion", "hybrid"))
    model = build(run).eval()
    for parameter in model.fusion.parameters():
        parameter.add_(0.3)
    batch = steps_of(run, model)[0][0]
    dark = [-view for view in batch.pixels]
    dark = torch.stack(dark) if isinstance(batch.pixels, torch.Tensor) else dark
    out, other = (model(**replace(batch, pixels=pixels).model_inputs()) for pixels in (batch.pixels, dark))
    assert not out.logits.equal(other.logits)
    places = [model.views.places(layout) for layout in batch.layouts]
    rows = [model.row_specs(layout)["connector"] for layout in batch.layouts]
    pairs = [pair for boxes, own in zip(places, rows, strict=True) for pair in zip(boxes, own, strict=True)]
    whole = [row.n for box, row in pairs if box == WHOLE]
    assert len(whole) == len(batch.layouts)
    assert int((batch.input_ids == model.config.image_token_id).sum()) == sum(whole)


@torch.no_grad()
def test_a_pruner_takes_tokens_of_the_overview_out_as_it_does_from_inline(tiny_run, steps_of):
    run = tiny_run(*TILES, *ROOM, "vision.architecture.patch_size=6", "llm.architecture.num_hidden_layers=4")
    run["pruner"] = shrink_pruner(node("pruner", "fastv"))
    run["fusion"] = shrink_stage("fusion", "hybrid", node("fusion", "hybrid"))
    model = build(run).eval()
    batch = steps_of(run, model)[0][0]
    out = model(**batch.model_inputs())
    kept, model.fusion.blocks = model.fusion.blocks, type(model.fusion.blocks)(0, 1)
    assert out.logits.equal(model(**batch.model_inputs()).logits)
    model.fusion.blocks = kept
    for parameter in model.fusion.parameters():
        parameter.add_(0.3)
    assert not out.logits.equal(model(**batch.model_inputs()).logits)


def test_the_attention_overlay_is_of_the_tokens_that_take_positions(tiled):
    _, model, steps = tiled()
    item = next(one for one in (steps.items(0, index)[0][0] for index in range(8)) if len(one.images) == 1)
    inputs = collate([item], "padded", 0).model_inputs()
    asked = {name: inputs[name] for name in ("input_ids", "pixels", "labels", "attention_mask", "images")}
    looked = model.look(**asked, layers=1)
    assert looked.attention.unread == ""
    assert len(looked.attention.images[0].values) == model.specs["connector"].n
