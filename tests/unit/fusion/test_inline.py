"""Inline fusion: who may look ahead, and how large visual tokens are."""

from __future__ import annotations

import json

import pytest
import torch

from beni.data.batch.collate import collate
from beni.errors import CompositionError
from beni.fusion.inline import InlineFusion, image_numbers
from beni.llm import probes
from beni.llm.segment_attention import SegmentPlan, causal
from beni.types import ImageInputs, Sequence, TokenSpec, VisualTokens

SPEC = TokenSpec(n=4, dim=8, grid=(2, 2), space="llm")


def inline(**values):
    fusion = InlineFusion(
        SPEC, 8, **{"image_attention": "causal", "out_norm": "none", "match_text_rms": False} | values
    )
    fusion.init_weights()
    return fusion


def bits(text):
    return torch.tensor([c != "." for c in text])


def text(images, **values):
    """A sequence of empty embeddings; ``images`` is True at placeholders."""
    if "cu_seqlens" not in values:
        values = {"mask": torch.ones(images.shape, dtype=torch.long)} | values
    positions = torch.arange(images.shape[1]).expand(images.shape)
    return Sequence(torch.zeros(*images.shape, 8), positions, images.long() - 1, **values)


def test_an_images_tokens_are_a_block_also_beside_another_image_and_around_text():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    visual = VisualTokens.fresh(torch.zeros(3, 3, 8), mask, torch.zeros(3, 3, 2), torch.ones(3, 3))
    row = text(bits(".####.###.")[None], cu_seqlens=torch.tensor([0, 6, 10]))
    images = [-1, 0, 0, 1, 1, -1, 1, 2, 2, -1]
    assert image_numbers(row, visual)[0].tolist() == images
    assert inline(image_attention="image")(row, visual).blocks[0].tolist() == images
    assert image_numbers(text(bits(".##.")[None]), None).tolist() == [[-1, 0, 0, -1]]


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


def test_all_before_the_answer_is_a_block_of_its_sample_in_both_layouts():
    fusion, words = inline(image_attention="prefix"), bits("." * 7)[None]
    labels = torch.tensor([[-100, -100, 5, -100, -100, -100, 6]])
    (blocks,) = fusion(text(words, labels=labels, cu_seqlens=torch.tensor([0, 4, 7])), None).blocks
    assert (blocks >= 0).tolist() == [True, True, False, False, True, True, False]
    assert blocks[0] == blocks[1] != blocks[4] == blocks[5]
    rows = torch.tensor([[-100, -100, 5, -100], [-100, -100, 6, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    padded = fusion(text(bits("....")[None].expand(2, 4), labels=rows, mask=mask), None).blocks
    assert (padded >= 0).tolist() == [[True, True, False, False]] * 2
    assert padded[0, 0] == padded[0, 1] != padded[1, 0] == padded[1, 1]


def test_what_is_asked_is_before_the_first_supervised_position_of_each_sample():
    words, labels = bits("." * 9)[None], torch.where(bits("..#.#...#"), 5, -100)[None]
    packed = text(words, labels=labels, cu_seqlens=torch.tensor([0, 5, 9], dtype=torch.int32))
    assert packed.asked[0].tolist() == bits("##...###.").tolist()
    assert text(words, cu_seqlens=torch.tensor([0, 9])).asked.all()


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
    prompt = batch.input_ids[:, :first]
    images = {"pixels": batch.pixels, "images": ImageInputs(batch.layouts, batch.owners)}
    said = model.generate(prompt, **images, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)[
        :, first:
    ]
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
        images = ImageInputs(batch.layouts, batch.owners)
        alone.append(
            model.generate(batch.input_ids, batch.pixels, images=images, **options)[0, batch.input_ids.shape[1] :]
        )
        rows.append(batch)
    longest = max(batch.input_ids.shape[1] for batch in rows)
    ids = torch.stack([torch.nn.functional.pad(b.input_ids[0], (longest - b.input_ids.shape[1], 0)) for b in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - b.input_ids.shape[1]).long() for b in rows])
    together = model.generate(
        ids,
        pixels=torch.cat([b.pixels for b in rows]),
        attention_mask=mask,
        images=ImageInputs(
            tuple(layout for b in rows for layout in b.layouts), torch.cat([b.owners + i for i, b in enumerate(rows)])
        ),
        **options,
    )
    assert together[:, longest:].tolist() == [row.tolist() for row in alone]


def test_an_llm_that_ignores_segments_cannot_look_ahead(tiny_run, monkeypatch):
    from beni import run as running

    monkeypatch.setattr(probes, "isolates_segments", lambda llm: False)
    with pytest.raises(CompositionError, match=r"E-ATTN \[fusion x llm\]: .*look ahead"):
        running.train(tiny_run("fusion.image_attention=image"))


def test_a_norm_on_visual_tokens_gives_them_the_size_one():
    visual = VisualTokens.dense(100 * torch.randn(2, 4, 8), (2, 2))
    places = text(torch.ones(1, 8, dtype=torch.bool))
    out = inline(out_norm="rmsnorm")(places, visual).embeds
    torch.testing.assert_close(out.square().mean(-1), torch.ones(1, 8))


@torch.no_grad()
def test_calibrated_visual_tokens_are_as_large_as_text_and_stay_in_proportion():
    visual = VisualTokens.dense(100 * torch.randn(2, 4, 8), (2, 2))
    places = text(torch.ones(1, 8, dtype=torch.bool))
    for norm in ("none", "layernorm"):
        fusion = inline(match_text_rms=True, out_norm=norm)
        fusion.calibrate(0.03 * torch.randn(50, 8), visual)
        out = fusion(places, visual).embeds
        assert float(out.square().mean().sqrt()) == pytest.approx(0.03, rel=0.2)
        half = fusion(places, visual.with_features(visual.x / 2)).embeds
        if norm == "none":
            torch.testing.assert_close(half * 2, out)
        fusion.calibrate(0.03 * torch.randn(50, 8), visual)  # again gives the same, not the number times itself
        again = fusion(places, visual).embeds
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
