"""A selector that keeps as many tokens as the picture deserves: laid out for all, dropped where there are fewer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from beni.data.batch.collate import collate
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.plan import Assumed
from beni.model.costing.table import propagate, spec_table
from beni.plan import show
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward
from beni.types import ImageInputs
from support.stages import KeepBright

FINE = ("vision.architecture.patch_size=6", "data.pictures_share=0.3")

FLAMINGO = (
    *FINE[:1],
    "fusion=flamingo",
    "fusion.every=1",
    "fusion.num_heads=2",
    "fusion.num_kv_heads=2",
    "fusion.head_dim=8",
)


@pytest.fixture
def bright(tiny_run, steps_of, monkeypatch):
    """A model with the selector, its steps, and items with one or two pictures."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run(*FINE)
    run["selector"] = {"_target_": "support.stages.KeepBright"}
    model = build(run).eval()
    steps = steps_of(run, model)
    return model, steps, [steps.items(0, index)[0][0] for index in range(6)]


def test_the_plan_tells_a_bound_from_a_number(tiny_run, monkeypatch, capsys):
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run(*FINE)
    run["selector"] = {"_target_": "support.stages.KeepBright"}
    show(run, Assumed((24, 24), 20, 10, 1, 1), as_json=True)
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert [name for name, row in rows.items() if row["fixed"]] == ["vision", "views"]
    assert {row["mean"] for row in rows.values()} == {None}
    show(run, Assumed((24, 24), 20, 10, 1, 1), as_json=False)
    shown = capsys.readouterr().out
    assert "≤ 16" in shown
    assert "at most 16 visual tokens" in shown


def test_a_mean_that_a_stage_knows_is_carried_to_the_llm(tiny_run, monkeypatch):
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    monkeypatch.setattr(KeepBright, "spec", lambda self, tokens: replace(tokens, fixed=False, grid=None, mean=5.5))
    run = tiny_run(*FINE)
    run["selector"] = {"_target_": "support.stages.KeepBright"}
    model = propagate(run)
    table = spec_table(model, run, 36, 10, model.views.plan((24, 24)))
    assert {row.stage: row.mean for row in table.rows if row.mean is not None} == {
        **dict.fromkeys(("selector", "resampler", "connector", "fusion"), 5.5),
        "llm": 36 - 16 + 5.5,
    }


@pytest.mark.parametrize("fusion", ["inline", "deepstack"])
def test_a_plan_bills_the_tokens_that_a_budget_leaves_as_a_batch_does(tiny_run, steps_of, fusion):
    """A sample of which one of four tokens is kept costs the llm what its kept positions cost."""
    levels = ("vision.levels=[1]", "fusion=deepstack", "fusion.sets=1") if fusion == "deepstack" else ()
    run = tiny_run("selector=random", "selector.keep=1", *levels)
    planned, model = propagate(run), build(run)
    batch = inputs([steps_of(run, model).items(0, 0)[0][0]], "packed")
    table = spec_table(planned, run, batch.num_tokens, batch.num_labels, batch.layouts[0])
    billed = Costs(planned).flop_count(batch, kept=[batch.num_tokens - 3])
    assert table.visual_tokens == 1
    assert table.train_flops_per_sample == pytest.approx(billed.useful, rel=1e-6)
    whole = spec_table(propagate(tiny_run(*levels)), run, batch.num_tokens, batch.num_labels, batch.layouts[0])
    assert table.row("llm").flops < whole.row("llm").flops


def test_a_plan_without_positions_for_tokens_bills_all_that_are_computed(tiny_run):
    plain, kept = (
        spec_table(model, run, 20, 10, model.views.plan((24, 24)))
        for run in (tiny_run(*FLAMINGO), tiny_run(*FLAMINGO, "selector=random", "selector.keep=4"))
        for model in [propagate(run)]
    )
    assert kept.row("llm").flops == plain.row("llm").flops
    assert kept.row("fusion").flops == plain.row("fusion").flops
    assert kept.visual_tokens == 4


def inputs(items, layout):
    return collate(items, layout, 0)


@torch.no_grad()
def test_pictures_keep_different_numbers_of_tokens_and_the_text_is_laid_out_for_all(bright):
    model, _, items = bright
    batch = inputs(items, "packed")
    visual = model.encode_images(batch.pixels)
    assert len(set(visual.mask.sum(1).tolist())) > 1
    assert (visual.laid.sum(1) == 16).all()
    assert int((batch.input_ids == model.config.image_token_id).sum()) == visual.laid.sum()


@torch.no_grad()
def test_a_sample_has_one_loss_packed_padded_and_alone(bright):
    model, _, items = bright

    def losses(chosen, layout):
        out = model(**inputs(chosen, layout).model_inputs())
        each = torch.nn.functional.cross_entropy(out.logits, out.targets, reduction="none")
        return [each[out.samples == i] for i in range(len(chosen))], out

    alone = [losses([one], "packed")[0][0] for one in items]
    for layout in ("packed", "padded"):
        together, out = losses(items, layout)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        dropped = [len(one.encoded.ids) - int(n) for one, n in zip(items, out.lengths, strict=True)]
        assert [count > 0 for count in dropped] == [bool(one.images) for one in items]


@torch.no_grad()
def test_dropped_tokens_are_as_if_they_had_never_been_but_for_the_gap_in_the_positions(bright):
    model, _, items = bright
    one = next(item for item in items if len(item.images) == 1)
    batch = inputs([one], "packed")
    visual = model.encode_images(batch.pixels)
    kept = torch.ones_like(batch.input_ids, dtype=torch.bool)
    kept[batch.input_ids == model.config.image_token_id] = visual.mask[0]
    logits = model(**batch.model_inputs()).logits
    bare = replace(
        batch,
        input_ids=batch.input_ids[kept][None],
        labels=batch.labels[kept][None],
        position_ids=batch.position_ids[kept][None],
        cu_seqlens=torch.tensor([0, int(kept.sum())], dtype=torch.int32),
        pixels=None,
    )
    few = ImageInputs(visual=replace(visual.gather(visual.mask[0].nonzero().T), dropped=None))
    again = model(**bare.model_inputs() | {"images": few}).logits
    torch.testing.assert_close(logits, again, rtol=1e-6, atol=1e-6)
    compact = model(**replace(bare, position_ids=torch.arange(int(kept.sum()))[None]).model_inputs() | {"images": few})
    assert (compact.logits - logits).abs().max() > 1e-5  # positions are kept, not counted anew


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_it_trains(bright, layout, tiny_run):
    model, _, items = bright
    model.train()
    optimizer = build_optimizer(model, tiny_run()["optim"])
    first = None
    for _ in range(8):
        halves = [inputs(items[:3], layout), inputs(items[3:], layout)]
        result = forward_backward(model, halves, 0, CPU, "fp32")
        loss = float(result.loss)
        clip_and_update(model, optimizer, 1e-2, 1.0)
        first = loss if first is None else first
    assert loss < first - 0.5
    assert result.labels == sum(int((item.encoded.labels != -100).sum()) for item in items)


CPU = torch.device("cpu")


@torch.no_grad()
def test_greedy_generation_says_what_whole_passes_say(bright):
    model, steps, _ = bright
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    prompts = []
    for sample in steps.source.heldout()[:3]:
        images = [steps.viewer(image.load()) for image in sample.images]
        pixels = torch.stack([view for image in images for view in image.pixels])
        prompts.append((torch.from_numpy(steps.renderer.prompt(sample, [i.markup for i in images]).ids), pixels))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = []
    for ids, pixels in prompts:
        for _ in range(5):
            ids = torch.cat([ids, model(ids[None], pixels).logits[0, -1:].argmax(-1)])
        expected.append(ids[-5:].tolist())
    for (ids, pixels), said in zip(prompts, expected, strict=True):
        assert model.generate(ids[None], pixels, **options)[0, len(ids) :].tolist() == said
    longest = max(len(ids) for ids, _ in prompts)
    left = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids, _ in prompts]).long()
    together = model.generate(left, torch.cat([p for _, p in prompts]), attention_mask=mask, **options)
    assert together[:, longest:].tolist() == expected
