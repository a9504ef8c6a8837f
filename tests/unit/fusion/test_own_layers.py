"""A fusion that puts layers of its own around those of the llm, and takes no position for an image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.data.batch.collate import collate
from beni.model.build import build
from beni.model.inputs import CallCounts, StepInputs
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import count_parameters
from beni.training.blocks import recompute
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward

MORE = ("data.pictures_share=0.4", "data.text_share=0.3", "vision.architecture.patch_size=6")
FUSION = {"_target_": "support.cross_fusion.CrossFusion"}


@pytest.fixture
def crossed(tiny_run, steps_of, monkeypatch):
    """A run with the fusion, its model, and its steps."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run(*MORE, "llm.architecture.num_hidden_layers=3")
    run["fusion"] = dict(FUSION)
    model = build(run).eval()
    return run, model, steps_of(run, model)


def items_of(steps, count=8):
    return [steps.items(0, index)[0][0] for index in range(count)]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_its_layers_are_counted_sharded_and_computed_again_like_those_of_the_llm(crossed):
    _, model, _ = crossed
    own = model.fusion.layers()
    assert list(model.fusion.blocks) == ["0", "2"]
    assert set(own) < set(model.sharding_units())
    assert set(own) < set(model.layers_with_gradient())
    assert count_parameters(model)["fusion"]["trained"] == sum(p.numel() for layer in own for p in layer.parameters())


@torch.no_grad()
def test_no_position_is_taken_and_the_answer_depends_on_the_picture_all_the_same(crossed):
    model, steps = crossed[1:]
    batch = collate(items_of(steps), "packed", 0)
    assert not (batch.input_ids == model.config.image_token_id).any()
    out, other = (model(**replace(batch, pixels=pixels).model_inputs()) for pixels in (batch.pixels, -batch.pixels))
    pictured = torch.isin(out.samples, batch.owners)
    changed = (out.logits != other.logits).any(1)
    assert changed[pictured].all()
    assert not changed[~pictured].any()
    assert not pictured.all()


@torch.no_grad()
def test_a_sample_has_one_loss_packed_padded_and_alone(crossed):
    model, steps = crossed[1:]
    items = items_of(steps)
    assert {len(one.images) for one in items} == {0, 1, 2}

    def losses(chosen, layout):
        out = model(**collate(chosen, layout, 0).model_inputs())
        each = torch.nn.functional.cross_entropy(out.logits, out.targets, reduction="none")
        return [each[out.samples == i] for i in range(len(chosen))]

    alone = [losses([one], "packed")[0] for one in items]
    for layout in ("packed", "padded"):
        for ours, theirs in zip(losses(items, layout), alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_it_trains(crossed, layout):
    run, model, steps = crossed
    model.train()
    optimizer = build_optimizer(model, run["optim"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    batches = [collate(items_of(steps)[i : i + 4], layout, 0) for i in (0, 4)]
    losses = []
    for _ in range(6):
        losses.append(float(forward_backward(model, batches, 0, torch.device("cpu"), "fp32").loss))
        clip_and_update(model, optimizer, 1e-2, 1.0)
    assert losses[-1] < losses[0] - 0.5
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {"vision", "connector", "fusion", "llm"}


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_computing_layers_again_changes_no_bit(crossed, mode):
    run, plain, steps = crossed
    saving = build(run)
    recompute(saving.layers_with_gradient(), mode)
    calls = []
    saving.fusion.layers()[1].query.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for model in (plain, saving):
        model.train()
        loss = model(**steps[0][0].model_inputs()).loss
        loss.backward()
        found.append({"loss": loss.detach()} | gradients(model))
    assert calls == [1, 1]  # forward, and once more for the backward pass
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert found[1][name].equal(gradient), name


def test_a_blank_image_counts_for_nothing(crossed):
    model, steps = crossed[1:]
    batch = collate([one for one in items_of(steps) if not one.images], "packed", 0)
    plain = model(**batch.model_inputs())
    blank = model(**batch.model_inputs(), how=StepInputs(calls=CallCounts(1, 1)))
    assert blank.loss.equal(plain.loss)
    blank.loss.backward()
    own = [p for name, p in model.named_parameters() if name.startswith(("fusion.", "connector."))]
    assert own
    assert all(p.grad is not None and not p.grad.any() for p in own)


@torch.no_grad()
def test_it_is_saved_and_loaded(crossed, tmp_path):
    model, steps = crossed[1:]
    model.save_pretrained(tmp_path / "saved")
    again = BeniForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    inputs = steps[0][0].model_inputs() | {"labels": None}
    assert again(**inputs).logits.equal(model(**inputs).logits)


@torch.no_grad()
def test_greedy_generation_says_what_whole_passes_say(crossed):
    model, steps = crossed[1:]
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
        assert model.generate(ids[None, :-5], pixels, **options)[0].tolist() == ids.tolist()
    assert len({tuple(said) for said in expected}) > 1
    longest = max(len(ids) for ids, _ in prompts)
    left = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids, _ in prompts]).long()
    together = model.generate(left, torch.cat([p for _, p in prompts]), attention_mask=mask, **options)
    assert together[:, longest:].tolist() == expected
