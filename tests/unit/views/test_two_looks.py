"""A finer look at some patches: those that are chosen, seen as though the others had never been, and billed alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from beni.data.batch.collate import pixel_key
from beni.errors import CompositionError
from beni.llm import segment_attention
from beni.measure.flops import count_flops, count_training_flops, counting
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate, spec_table
from beni.nn.streams import torch_stream
from beni.stage import Row, Sink, StageContext
from beni.training.step import forward_backward
from beni.types import Prompt, TokenSpec, VisualTokens
from beni.views.ps3 import Ps3
from beni.views.random_patches import RandomPatches
from beni.vision.feature_bank import FeatureBank, describe
from support.small_model import LONG

FINE = (*LONG, "vision.architecture.patch_size=6", "vision.attn_implementation=eager")
"""4x4 patches, and 8x8 of the finer look."""
LOOK = ("views.times=2", "views.keep=10")
PS3 = ("views=ps3", *LOOK, "views.detail=4", "views.width=8")
RANDOM = ("views=random_patches", *LOOK)
DIM, WIDE = 6, 10


@pytest.fixture
def model_of(tiny_run):
    """model_of(*overrides): a model with weights so large that tokens differ."""

    def make(*overrides):
        model = build(tiny_run(*FINE, *overrides)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("vision", "views")):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return make


def pixels_of(model, count=3):
    pictures = [PILImage.effect_noise((70, 50), 40 + i).convert("RGB") for i in range(count)]
    seen = [model.viewer(picture) for picture in pictures]
    return [view for one in seen for view in one.pixels], StageContext(layouts=tuple(one.layout for one in seen))


def looks(model, pixels, context):
    """Both looks as the model encodes them, ``(2 i, n, d)``."""
    rows = []
    handle = model.views.register_forward_hook(lambda stage, arguments, out: rows.append(arguments[0]))
    model.encode_images(pixels, context)
    handle.remove()
    return rows[0]


def stage(values=None, seed=0, **known):
    spec = TokenSpec(n=12, dim=DIM, grid=(3, 4))
    given = {"tokens": spec, "dim_out": WIDE, "tile": (24, 32), "patches": (3, 4)} | known
    defaults = {"times": 2, "keep": 7, "detail": 5, "source": "embeddings", "text_encoder": None}
    defaults |= {"width": 8, "centred": True}
    defaults |= {"no_prompt_rate": 0.1, "gradient": "straight_through", "scale": 5.0, "join": False}
    with torch_stream(seed, "views"):
        made = Ps3(**given, **defaults | (values or {}))
        made.init_weights()
    return made.double().eval()


def drawn_inputs(count=2, seed=0):
    """What the first look saw, the pixels of the second, and what is asked about each of two rows an image."""
    generator = torch.Generator().manual_seed(seed)
    x, pixels, asked = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((count, 12, DIM), (count, 3, 48, 64), (count, 3, WIDE))
    )
    prompt = Prompt(asked.repeat_interleave(2, 0), torch.ones(2 * count, 3, dtype=torch.bool))
    return VisualTokens.dense(x, (3, 4)), pixels, prompt


def published_worth(views, x, pixels, asked):
    """P(keep) of each finer patch of one picture, as ``_calculate_select_probs`` has it, patch by patch."""
    text = F.layer_norm(asked.mean(0), (WIDE,))
    text = views.scores.of_text.weight @ text + views.scores.of_text.bias
    x = x - x.mean(0)
    features = views.detail.around(F.gelu(views.detail.embed(pixels[None])))[0]
    wanted = views.detail.of_text.weight @ text
    worth = torch.empty(6, 8, dtype=torch.float64)
    for row in range(6):
        for column in range(8):
            r, c = row // 2, column // 2
            low = torch.cosine_similarity(views.scores.of_token.weight @ x[4 * r + c], text, dim=0)
            cell = features[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten(1)
            high = max(torch.cosine_similarity(one, wanted, dim=0) for one in cell.T)
            worth[row, column] = torch.softmax(torch.stack([5 * (low + high) / 2, torch.zeros_like(low)]), 0)[0]
    return worth.flatten()


@torch.no_grad()
def test_the_patches_that_are_kept_are_those_of_the_published_rule():
    views, (whole, pixels, prompt) = stage(), drawn_inputs()
    choice = views.choose(whole, pixels, StageContext(prompt=prompt))
    for i, keep in enumerate(choice.keep):
        worth = published_worth(views, whole.x[i], pixels[i], prompt.embeds[2 * i])
        expected = sorted(range(48), key=lambda place: (-float(worth[place]), place))[:7]
        assert keep.nonzero().flatten().tolist() == sorted(expected)


def test_a_gate_of_zero_has_the_gradient_of_the_logarithm_of_the_published_worth():
    views, (whole, pixels, prompt) = stage(), drawn_inputs()
    choice = views.choose(whole, pixels, StageContext(prompt=prompt))
    assert (choice.log_gate == 0).all()
    weights = torch.randn(choice.log_gate.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad((choice.log_gate * weights).sum(), list(views.parameters()))
    total = 0.0
    for i, keep in enumerate(choice.keep):
        worth = published_worth(views, whole.x[i], pixels[i], prompt.embeds[2 * i])
        total = total + (worth[keep].log() * weights[i]).sum()
    theirs = torch.autograd.grad(total, list(views.parameters()))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
        assert mine.abs().max() > 0
    soft = stage({"gradient": "gates"}).choose(whole, pixels, StageContext(prompt=prompt))
    torch.testing.assert_close(
        soft.log_gate[0], published_worth(views, whole.x[0], pixels[0], prompt.embeds[0]).log()[choice.keep[0]]
    )
    without = stage({"gradient": "none"})
    assert without.choose(whole, pixels, StageContext(prompt=prompt)).log_gate is None
    assert not any(parameter.requires_grad for parameter in without.parameters())


@torch.no_grad()
def test_what_is_asked_about_one_picture_decides_about_that_picture_alone():
    views, (whole, pixels, prompt) = stage(), drawn_inputs()
    other = replace(prompt, embeds=torch.cat([prompt.embeds[:2], -3 * prompt.embeds[2:] + 1]))
    before, after = (views.choose(whole, pixels, StageContext(prompt=asked)).keep for asked in (prompt, other))
    assert after[0].equal(before[0])
    assert not after[1].equal(before[1])
    nothing = [
        views.choose(whole, pixels, StageContext(prompt=asked)).keep
        for asked in (None, replace(prompt, mask=torch.zeros_like(prompt.mask)))
    ]
    assert nothing[0].equal(nothing[1])  # the learned vector stands in
    assert not nothing[0].equal(before)


@torch.no_grad()
@pytest.mark.parametrize("option", [PS3, RANDOM], ids=["ps3", "random_patches"])
@pytest.mark.parametrize("join", [False, True])
def test_if_all_patches_are_kept_the_second_look_is_the_finer_picture_to_the_last_bit(model_of, option, join):
    model = model_of(*option, "views.keep=1.0", f"views.join={join}".lower())
    model.views.view = None if not join else torch.nn.Parameter(torch.zeros_like(model.views.view))
    pixels, context = pixels_of(model)
    rows = looks(model, pixels, context)
    assert rows.x[1::2].equal(model.vision(torch.stack(pixels[1::2])).x)
    assert rows.x[0::2, :16].equal(model.vision(torch.stack(pixels[0::2])).x)
    assert rows.mask.sum(1).tolist() == [16, 64] * 3
    (n,) = {*model.encode_images(pixels, context).mask.sum(1).tolist()}
    assert n == 80 == model.viewer.visual_tokens(context.layouts[0])


@torch.no_grad()
def test_a_patch_that_is_left_out_is_a_patch_that_nobody_attends_to(model_of):
    model = model_of(*PS3)
    pixels, context = pixels_of(model)
    rows, finer = looks(model, pixels, context), torch.stack(pixels[1::2])
    choice = model.views.choose(model.vision(torch.stack(pixels[0::2])), finer, context)
    assert choice.keep.sum(1).tolist() == [10] * 3
    hf = model.vision.model
    hidden = hf.embeddings(finer, interpolate_pos_encoding=True)
    mask = torch.zeros(3, 1, 64, 64).masked_fill(~choice.keep[:, None, None], -torch.inf)
    hidden = hf.post_layernorm(hf.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state)
    expected = torch.stack([hidden[i][keep] for i, keep in enumerate(choice.keep)])
    torch.testing.assert_close(rows.x[1::2, :10], expected, rtol=1e-5, atol=1e-5)
    places = torch.stack([choice.keep[i].nonzero().flatten() for i in range(3)])
    assert (rows.yx[1::2, :10] * 8).floor().long().equal(torch.stack([places // 8, places % 8], -1))


def test_what_is_not_kept_costs_no_block_of_the_encoder(tiny_run):
    bills = {}
    for keep in (1, 10, 64):
        run = tiny_run(*FINE, *PS3, f"views.keep={keep}")
        twin = propagate(run)
        layout = twin.viewer.plan((50, 70))
        bills[keep] = Costs(twin).prefill(layout, 120, 4)
        (row,) = [row for row in spec_table(twin, run, 120, 4, layout).rows if row.stage == "vision"]
        assert (row.tokens, row.flops) == (16 + keep, bills[keep]["vision"])
    embed, layer = 2 * 36 * 3 * 32, 2 * (4 * 32 * 32 + 2 * 32 * 64)  # of a patch: its embedding, and one of 2 blocks

    def encoder(n, kept):
        return n * embed + 2 * (kept * layer + 4 * kept * kept * 32)

    for keep, bill in bills.items():
        assert bill["vision"] == encoder(16, 16) + encoder(64, keep)
    assert bills[1]["views"] == bills[64]["views"] > 0


@pytest.mark.parametrize("plan", ["frozen", "full"])
@pytest.mark.parametrize("option", [PS3, (*PS3, "views.gradient=none", "views.join=true"), RANDOM], ids=str)
def test_the_bill_before_the_llm_is_what_torch_counts_forward_and_backward(tiny_run, option, plan):
    # as many as the first look has: the connector would pad the shorter rows, which nobody is billed
    run = tiny_run(*FINE, *option, f"train.plan.vision={plan}", "views.keep=16")
    model, costs = build(run), Costs(propagate(run))
    pixels, context = pixels_of(model, 1)

    def forward():
        out = model.encode_images(pixels, context)
        return [out.x, *(() if out.log_gate is None else (out.log_gate,))]

    before, both = count_training_flops(forward)
    parts = ("vision", "views", "connector")
    prefill, training = costs.prefill(context.layouts[0], 90, 4), costs.training(context.layouts[0], 90, 4)
    assert sum(prefill[name] for name in parts) == before
    assert sum(training[name] for name in parts) == both
    assert (prefill["views"] > 0) == (option != RANDOM)
    assert (training["views"] > prefill["views"]) == (option == PS3)


@pytest.mark.parametrize("option", [(*PS3, "views.gradient=none"), RANDOM], ids=str)
def test_the_bill_of_a_micro_batch_is_what_torch_counts(monkeypatch, steps_of, tiny_run, option):
    monkeypatch.setattr(segment_attention, "WASTE", 1.0)
    run = tiny_run(*FINE, *option, "train.plan.vision=full", "train.batch_size=2", "views.keep=16")
    model = build(run)
    batch = steps_of(run, model)[0][0]
    bill = Costs(propagate(run), model.config.image_token_id).flop_count(batch)
    with counting() as counter:
        forward_backward(model, [batch], 0, torch.device("cpu"), "fp32")
    assert bill.useful == pytest.approx(counter.get_total_flops(), rel=0.001)


@torch.no_grad()
def test_random_patches_are_a_sample_s_own_and_others_in_each_step_of_training():
    spec = TokenSpec(n=12, dim=DIM, grid=(3, 4))

    def made(seed=0, training=False):
        views = RandomPatches(spec, (24, 32), (3, 4), times=2, keep=0.25, seed=seed, join=False)
        return views.train(training)

    whole, pixels, _ = drawn_inputs()
    rows = tuple(Row(i, i, f"{name}/{view}", view) for i, name in enumerate("ab") for view in (0, 1))

    def keep(views, step=0, order=slice(None)):
        own = torch.arange(2).flip(0)[order] if order != slice(None) else torch.arange(2)
        named = tuple(rows[2 * i + view] for i in own.tolist() for view in (0, 1))
        return views.choose(whole.select(own), pixels[own], StageContext(step=step, rows=named)).keep

    first = keep(made())
    assert first.sum(1).tolist() == [12, 12]
    assert keep(made(), step=5).equal(first)
    assert keep(made(), order=slice(0, 1)).equal(first[1:])
    assert not first[0].equal(first[1])
    assert not keep(made(seed=1)).equal(first)
    assert not keep(made(training=True), step=5).equal(keep(made(training=True), step=6))


@pytest.mark.parametrize("vision", ["convnext", "swin", "dinosiglip"])
def test_an_encoder_that_needs_all_patches_is_refused(tiny_run, vision):
    from support.options import node

    run = tiny_run(*LONG, *PS3)
    run["vision"] = node("vision", vision)
    with pytest.raises(CompositionError, match=r"^E-KEEP \[vision\]: .*\n  fix: .+"):
        propagate(run)


def test_patches_that_do_not_cover_the_same_places_are_refused(tiny_run):
    with pytest.raises(
        CompositionError, match=r"^E-DIV \[vision x views\]: .* 2x2 patches of 29x29 pixels.*\n  fix: .+"
    ):
        propagate(tiny_run(*LONG, *PS3, "vision.image_size=29", "views.times=4"))


@torch.no_grad()
def test_a_bank_holds_whole_pictures_and_no_finer_looks(model_of, tmp_path):
    model = model_of(*PS3)
    pixels, context = pixels_of(model)
    plain = model.encode_images(pixels, context)
    model.feature_bank = FeatureBank(tmp_path, describe(model.vision, {}, "fp32"), pytest.fail)
    keys = [pixel_key(view) for view in pixels]
    first, again = (model.encode_images(pixels, context, keys) for _ in range(2))
    model.feature_bank.close()
    assert (model.feature_bank.hits, model.feature_bank.misses) == (3, 3)
    assert first.x.equal(plain.x)
    assert again.x.equal(plain.x)


@torch.no_grad()
def test_what_is_kept_and_what_it_is_worth_are_left_to_be_drawn(model_of):
    for join in (False, True):
        model = model_of(*PS3, f"views.join={join}".lower())
        pixels, context = pixels_of(model, 2)
        sink = Sink(wants_pictures=True)
        count = 1 if join else 2
        rows = tuple(Row(i, i, f"{i}/{view}", view) for i in range(2) for view in range(count))
        model.encode_images(pixels, replace(context, rows=rows, sink=sink))
        choice = model.views.choose(model.vision(torch.stack(pixels[0::2])), torch.stack(pixels[1::2]), context)
        for image, drawn in sink.pictures["views/kept"]:
            places = (drawn.yx * 8).floor().long()
            assert (places[:, 0] * 8 + places[:, 1]).tolist() == choice.keep[image].nonzero().flatten().tolist()
            assert (drawn.view, drawn.grid) == (count - 1, (8, 8))
        assert [image for image, _ in sink.pictures["views/scores"]] == [0, 1]


@torch.no_grad()
def test_on_a_report_the_patches_that_the_encoder_did_not_see_are_dark(model_of):
    from beni.evals.drawings import DARK, artist_of

    for join in (False, True):
        model = model_of(*PS3, f"views.join={join}".lower())
        pixels, context = pixels_of(model, 1)
        sink = Sink(wants_pictures=True)
        rows = tuple(Row(0, 0, f"0/{view}", view) for view in range(1 if join else 2))
        model.encode_images(pixels, replace(context, rows=rows, sink=sink))
        left = [values for _, values in sink.pictures["views/kept"]]
        (drawing,) = artist_of(model).of_stage("views/kept", context.layouts[0], left, (64, 64))
        assert drawing.note == "10 of 64 tokens"
        opacity = np.asarray(drawing.overlay.convert("RGBA"))[..., 3]
        assert set(np.unique(opacity)) == {0, DARK}
        assert (opacity == 0).mean() == 10 / 64


def test_the_flops_of_the_choice_are_counted_without_values():
    views = stage()
    whole, pixels, prompt = drawn_inputs(1)
    own = count_flops(lambda: deepcopy(views).choose(whole, pixels, StageContext(prompt=prompt)))
    text = 2 * WIDE * 8 + 2 * 8 * 5
    maps = 2 * 12 * DIM * 8 + 2 * 12 * 8
    detail = 12 * 16 * (2 * 3 * 16 * 5 + 2 * 5 * 5 * 9 + 2 * 5)
    assert own == text + maps + detail
