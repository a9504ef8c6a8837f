"""Inline fusion: who may look ahead, and how large visual tokens are."""

from __future__ import annotations

import json

import pytest
import torch

from beni.data.batch.collate import collate
from beni.errors import CompositionError
from beni.fusion.inline import InlineFusion
from beni.llm.segment_attention import SegmentPlan, causal
from beni.model.predict import Sequences, before_answers, image_numbers
from beni.stage import TokenSpec
from beni.types import VisualTokens

SPEC = TokenSpec(n=4, dim=8, grid=(2, 2), space="llm")


def inline(**values):
    fusion = InlineFusion(
        SPEC, 8, **{"image_attention": "causal", "out_norm": "none", "match_text_rms": False} | values
    )
    fusion.init_weights()
    return fusion


def bits(text):
    return torch.tensor([c != "." for c in text])


def test_an_images_tokens_are_a_block_also_beside_another_image_and_around_text():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    visual = VisualTokens(torch.zeros(3, 3, 8), mask, torch.zeros(3, 3, 2), torch.ones(3, 3))
    images = image_numbers(bits(".####.###.")[None], visual)[0]
    assert images.tolist() == [-1, 0, 0, 1, 1, -1, 1, 2, 2, -1]
    blocks = inline(image_attention="image").blocks(images, bits("." * 10), torch.tensor([0, 6, 10]))
    assert blocks.equal(images)
    assert image_numbers(bits(".##.")[None], None).tolist() == [[-1, 0, 0, -1]]


def test_an_image_does_not_see_the_one_after_it(tiny_run, tiny_model, steps_of):
    overrides = ("vision.image_size=24", "fusion.image_attention=image")
    model, steps = tiny_model(*overrides), steps_of(tiny_run(*overrides), tiny_model(*overrides))
    one = steps.items(0, 0)[0][0]
    pixels = torch.stack([one.images[0].pixels[0]] * 2)
    ids = torch.from_numpy(one.encoded.ids)
    places = (ids == model.config.image_token_id).nonzero()[:, 0]
    both = torch.cat([ids[: places[-1] + 1], ids[places], ids[places[-1] + 1 :]])[None]
    last = slice(int(places[0]), int(places[-1]) + 1)
    with torch.no_grad():
        seen = [model(both, torch.stack([pixels[0], other])).logits[0] for other in (pixels[1], pixels[1] + 1)]
    assert seen[0][last].equal(seen[1][last])
    assert not seen[0][-1].equal(seen[1][-1])


def test_an_images_block_ends_where_its_tokens_do():
    blocks = inline(image_attention="image").blocks(
        torch.tensor([-1, 0, 0, -1, 1, 1, 2, 2, -1]), bits("." * 9), torch.tensor([0, 6, 9])
    )
    assert blocks[[0, 3, 8]].tolist() == [-1, -1, -1]
    assert blocks[1] == blocks[2]
    assert blocks[4] == blocks[5]
    assert blocks[6] == blocks[7]
    assert len(set(blocks[[1, 4, 6]].tolist())) == 3


def test_all_before_the_answer_is_a_block_of_its_sample():
    blocks = inline(image_attention="prefix").blocks(bits("." * 7).long() - 1, bits("##..##."), torch.tensor([0, 4, 7]))
    assert (blocks >= 0).tolist() == [True, True, False, False, True, True, False]
    assert blocks[0] == blocks[1] != blocks[4] == blocks[5]


def test_before_the_answers_is_before_the_first_supervised_position_of_each_sample():
    row = torch.zeros(1, 9, 2)
    labels = bits("..#.#...#")[None]
    none = torch.full((1, 9), -1)
    packed = Sequences(row, none, labels, torch.arange(9)[None], cu_seqlens=torch.tensor([0, 5, 9], dtype=torch.int32))
    assert before_answers(packed).tolist() == bits("##...###.").tolist()
    without = Sequences(row, none, None, torch.arange(9)[None], cu_seqlens=torch.tensor([0, 9]))
    assert before_answers(without).all()


@pytest.fixture(params=["image", "prefix"])
def seeing(request, tiny_run, tiny_model, steps_of):
    overrides = ("vision.image_size=24", f"fusion.image_attention={request.param}", "data.text_share=0.3")
    return tiny_model(*overrides), steps_of(tiny_run(*overrides), tiny_model(*overrides))


@torch.no_grad()
def test_a_sample_is_predicted_alike_packed_padded_and_alone_when_it_looks_ahead(seeing):
    model, steps = seeing
    items = [steps.items(0, index)[0][0] for index in range(5)]

    def logits(chosen, layout):
        return model(**collate(chosen, layout, 0).model_inputs()).logits

    alone = torch.cat([logits([one], "packed") for one in items])
    torch.testing.assert_close(logits(items, "packed"), alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(items, "padded"), alone, rtol=1e-4, atol=1e-4)
    model.fusion.image_attention = "causal"
    assert (logits(items, "packed") - alone).abs().max() > 1e-3


@torch.no_grad()
def test_generation_continues_what_a_whole_pass_would_say(seeing):
    """The answer token by token, each from a pass over the whole sequence with the same positions looking ahead."""
    model, steps = seeing
    item = next(one for index in range(20) for one in steps.items(0, index)[0] if one.images)
    batch = collate([item], "padded", 0)
    first = int((batch.labels[0] != -100).nonzero()[0])
    prompt, layouts = batch.input_ids[:, :first], batch.layouts
    images = {"pixels": batch.pixels, "layouts": layouts, "owners": batch.owners}
    said = model.generate(prompt, **images, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    ids = prompt
    for _ in range(5):
        labels = torch.full_like(ids, -100)
        labels = torch.cat([labels, torch.zeros(1, 1, dtype=torch.long)], 1)  # everything up to here is the prompt
        labels[:, first:] = 0
        out = model(torch.cat([ids, torch.zeros(1, 1, dtype=torch.long)], 1), labels=labels, **images)
        ids = torch.cat([ids, out.logits[-1].argmax()[None, None]], 1)
    assert said.tolist() == ids[:, first:].tolist()


@torch.no_grad()
def test_rows_of_different_length_generate_as_they_do_alone(seeing):
    model, steps = seeing
    items = [one for index in range(20) for one in steps.items(0, index)[0] if one.images][:3]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    alone, rows = [], []
    for item in items:
        batch = collate([item], "padded", 0)
        images = {"pixels": batch.pixels, "layouts": batch.layouts}
        alone.append(model.generate(batch.input_ids, **images, owners=batch.owners, **options)[0])
        rows.append(batch)
    longest = max(batch.input_ids.shape[1] for batch in rows)
    ids = torch.stack([torch.nn.functional.pad(b.input_ids[0], (longest - b.input_ids.shape[1], 0)) for b in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - b.input_ids.shape[1]).long() for b in rows])
    together = model.generate(
        ids,
        pixels=torch.cat([b.pixels for b in rows]),
        attention_mask=mask,
        layouts=tuple(layout for b in rows for layout in b.layouts),
        owners=torch.cat([b.owners + i for i, b in enumerate(rows)]),
        **options,
    )
    assert together.tolist() == [row.tolist() for row in alone]


def test_an_llm_that_ignores_segments_cannot_look_ahead(tiny_run, monkeypatch):
    from beni import run as running

    monkeypatch.setattr(running, "isolates_segments", lambda llm: False)
    with pytest.raises(CompositionError, match=r"E-ATTN \[fusion x llm\]: .*look ahead"):
        running.train(tiny_run("fusion.image_attention=image"))


def test_a_norm_on_visual_tokens_gives_them_the_size_one():
    visual = VisualTokens.dense(100 * torch.randn(2, 4, 8), (2, 2))
    is_image = torch.ones(1, 8, dtype=torch.bool)
    out = inline(out_norm="rmsnorm")(torch.zeros(1, 8, 8), is_image, visual)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(1, 8))


@torch.no_grad()
def test_calibrated_visual_tokens_are_as_large_as_text_and_stay_in_proportion():
    visual = VisualTokens.dense(100 * torch.randn(2, 4, 8), (2, 2))
    is_image = torch.ones(1, 8, dtype=torch.bool)
    for norm in ("none", "layernorm"):
        fusion = inline(match_text_rms=True, out_norm=norm)
        fusion.calibrate(0.03 * torch.randn(50, 8), visual)
        out = fusion(torch.zeros(1, 8, 8), is_image, visual)
        assert float(out.square().mean().sqrt()) == pytest.approx(0.03, rel=0.2)
        half = fusion(torch.zeros(1, 8, 8), is_image, visual.with_features(visual.x / 2))
        if norm == "none":
            torch.testing.assert_close(half * 2, out)
        fusion.calibrate(0.03 * torch.randn(50, 8), visual)  # again gives the same, not the number times itself
        again = fusion(torch.zeros(1, 8, 8), is_image, visual)
        assert float(again.square().mean().sqrt()) == pytest.approx(0.03, rel=0.2)


def test_a_run_measures_the_scale_on_its_first_batch_and_saves_it(tiny_run):
    from beni.model.modeling import BeniForConditionalGeneration
    from beni.run import train

    run = tiny_run("fusion.match_text_rms=true", "checkpoint.export=true", "connector.init_std=0.5", "train.steps=1")
    folder = train(run)
    model = BeniForConditionalGeneration.from_pretrained(folder / "model")
    assert 0 < float(model.fusion.scale) < 0.2
    again = tiny_run(
        "fusion.match_text_rms=true", "train.steps=1", f"train.init_from={folder}", "optim.lr=1e-9", "optim.min_lr=0"
    )
    again["checkpoint"]["export"] = True
    kept = BeniForConditionalGeneration.from_pretrained(train(again) / "model")
    assert kept.fusion.scale.equal(model.fusion.scale)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_a_block_that_is_longer_than_a_sliding_window_sees_all_of_itself():
    plan = SegmentPlan.build(torch.tensor([0, 8]), 8, torch.tensor([-1, 0, 0, 0, 0, 0, -1, -1]))
    (rectangle,) = plan.rectangles
    q = torch.zeros(1, 1, 8, 8)
    weights = causal(q, q, torch.eye(8)[None, None], None, 0.0, 2, None, rectangle.sees)[0, 0]
    assert (weights > 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        *[[0, 1, 1, 1, 1, 1, 0, 0]] * 4,
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
