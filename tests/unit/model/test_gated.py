"""Gates on visual tokens: read by a resampler or carried into the llm, in training, scoring and generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.data.batch.collate import collate
from beni.errors import CompositionError
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate
from beni.training.blocks import recompute
from beni.types import ImageInputs

FINE = ("vision.architecture.patch_size=6", "data.pictures_share=0.3")
PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
OPTIONS = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def gated(tiny_run, monkeypatch):
    """gated(*overrides) -> a run whose selector gives its tokens gates."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = tiny_run(*FINE, *overrides)
        run["selector"] = {"_target_": "support.stages.Gated"}
        return run

    return make


@pytest.fixture
def modelled(gated, steps_of):
    """modelled(*overrides) -> a model with large weights, its steps and a few items."""

    def make(*overrides):
        run = gated(*overrides)
        model = build(run).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        steps = steps_of(run, model)
        return model, steps, [steps.items(0, index)[0][0] for index in range(6)]

    return make


def losses(model, items, layout):
    out = model(**collate(items, layout, 0).model_inputs())
    each = torch.nn.functional.cross_entropy(out.logits, out.targets, reduction="none")
    return [each[out.samples == i] for i in range(len(items))]


@pytest.mark.parametrize("overrides", [(), PERCEIVER, ("fusion.image_attention=image",)], ids=["llm", "read", "blocks"])
def test_a_sample_has_one_loss_and_one_gradient_packed_padded_and_alone(modelled, overrides):
    model, _, items = modelled(*overrides)
    gate = model.selector.direction
    assert model.specs["llm"].gated == (overrides != PERCEIVER)
    found = {}
    for layout in ("packed", "padded"):
        together = losses(model, items, layout)
        found[layout] = together, torch.autograd.grad(torch.cat(together).sum(), gate)[0]
    alone = [losses(model, [one], "packed")[0] for one in items]
    found["alone"] = alone, torch.autograd.grad(torch.cat(alone).sum(), gate)[0]
    assert found["alone"][1].abs().max() > 1e-3
    for layout in ("packed", "padded"):
        for ours, theirs in zip(found[layout][0], alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[layout][1], found["alone"][1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_is_closed_does_not_reach_the_answer(modelled):
    model, _, items = modelled()
    batch = collate([item for item in items if len(item.images) == 1], "packed", 0)
    visual = model.encode_images(batch.pixels)
    shut = visual.log_gate == -torch.inf
    assert bool(shut.any(1).all())
    assert not bool(shut.all(1).any())

    def logits(x):
        images = ImageInputs(visual=visual.with_features(x), owners=batch.owners)
        return model(**replace(batch, pixels=None).model_inputs() | {"images": images}).logits

    generator = torch.Generator().manual_seed(0)
    other = torch.randn(visual.x.shape, generator=generator)
    expected = logits(visual.x)
    torch.testing.assert_close(logits(torch.where(shut[..., None], other, visual.x)), expected, rtol=1e-5, atol=1e-5)
    assert (logits(torch.where(shut[..., None], visual.x, other)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_gates_get_their_gradient_from_layers_that_are_computed_again(modelled, mode, layout):
    gradients = []
    for again in (False, True):
        model, _, items = modelled()
        if again:
            recompute(model.layers_with_gradient(), mode)
        torch.cat(losses(model.train(), items, layout)).sum().backward()
        gradients.append(model.selector.direction.grad)
    assert gradients[0].abs().max() > 1e-3
    assert gradients[0].equal(gradients[1])


@torch.no_grad()
@pytest.mark.parametrize("overrides", [(), PERCEIVER], ids=["llm", "read"])
def test_greedy_generation_says_what_whole_passes_say(modelled, overrides):
    model, steps, _ = modelled(*overrides)
    prompts, expected = [], []
    for sample in steps.source.heldout()[:3]:
        images = [steps.viewer(image.load()) for image in sample.images]
        pixels = torch.stack([view for image in images for view in image.pixels])
        prompts.append((torch.from_numpy(steps.renderer.prompt(sample, [i.markup for i in images]).ids), pixels))
    for ids, pixels in prompts:
        for _ in range(5):
            ids = torch.cat([ids, model(ids[None], pixels).logits[0, -1:].argmax(-1)])
        expected.append(ids[-5:].tolist())
    longest = max(len(ids) for ids, _ in prompts)
    left = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids, _ in prompts]).long()
    together = model.generate(left, torch.cat([p for _, p in prompts]), attention_mask=mask, **OPTIONS)
    assert together[:, longest:].tolist() == expected


@pytest.mark.parametrize("resampler", ["avg_pool", "pixel_shuffle", "d_abstractor"])
def test_a_stage_that_would_bring_closed_tokens_back_is_refused(gated, resampler):
    with pytest.raises(CompositionError, match=r"E-GATE \[selector x resampler\]: .*closed ones would come back"):
        build(gated(f"resampler={resampler}"))


def test_gates_behind_several_encoders_are_refused_where_the_encoders_are_read_one_by_one():
    from beni.config.build import build_stage
    from beni.conformance.subject import encoders, with_gates
    from beni.types import TokenSpec
    from support.options import node

    spec = TokenSpec(n=16, dim=32, grid=(4, 4), sources=encoders(32))
    sva = build_stage(node("resampler", "sva") | {"hidden_size": 32, "num_heads": 2}, tokens=spec, dim_out=64)
    assert not sva.spec(with_gates(spec)).gated
    with pytest.raises(CompositionError, match="E-GATE"):
        sva.spec(replace(spec, gated=True))


def test_a_resampler_that_reads_gates_is_counted_with_them(gated, tiny_run):
    twins = [propagate(run) for run in (gated(*PERCEIVER), tiny_run(*FINE, *PERCEIVER))]
    layout = twins[0].views.extremes()[0]
    with_gates, without = (Costs(twin, 0).prefill(layout, 32, 1)["resampler"] for twin in twins)
    latents, heads, depth, channels = 3, 2, twins[0].config.parts["resampler"]["depth"], 8
    keys = twins[0].specs["selector"].n + latents
    assert with_gates - without == depth * 2 * 2 * heads * latents * keys * channels  # logits, and what is read


def test_a_run_whose_llm_cannot_be_told_of_gates_ends_before_it_begins(gated, monkeypatch):
    from beni.llm import probes
    from beni.run import train

    monkeypatch.setattr(probes, "isolates_segments", lambda llm: False)
    with pytest.raises(CompositionError, match=r"E-ATTN \[selector x llm\]"):
        train(gated("compute.layout=padded"))
