"""Every component draws from a stream of its own: swapping one leaves all others, and every batch, as they were."""

from __future__ import annotations

import pytest
import torch

from beni.nn.streams import derive, numpy_stream, torch_stream

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
SWAPS = {
    "resampler": PERCEIVER,
    "vision": ("vision.architecture.num_hidden_layers=3",),
    "llm": ("llm.architecture.num_hidden_layers=3",),
    "connector": ("connector=linear",),
    "adapter": ("adapter=lora", "train.plan.llm=lora"),
    "adapter=dora": ("adapter=dora", "train.plan.llm=lora", "train.plan.vision=lora"),
}


@pytest.mark.parametrize("group", SWAPS)
def test_swapping_one_component_leaves_the_others_bit_identical(tiny_model, group):
    ours, theirs = tiny_model().state_dict(), tiny_model(*SWAPS[group]).state_dict()
    if group.startswith("adapter"):
        theirs = {n.replace(".base_layer", ""): t for n, t in theirs.items() if "lora_" not in n}
    changed = "none at all" if group.startswith("adapter") else group
    kept = [name for name in ours if name.partition(".")[0] != changed]
    assert {name.partition(".")[0] for name in kept} >= {"vision", "connector", "llm"} - {group} or group.startswith(
        "adapter"
    )
    for name in kept:
        assert ours[name].equal(theirs[name]), name


def test_adapters_of_one_component_are_drawn_alike_whatever_else_has_some(tiny_model):
    alone = tiny_model("adapter=pissa", "train.plan.llm=lora").state_dict()
    both = tiny_model("adapter=pissa", "train.plan.llm=lora", "train.plan.vision=lora").state_dict()
    assert all(tensor.equal(both[name]) for name, tensor in alone.items() if name.startswith("llm."))


def test_swapping_the_resampler_leaves_the_samples_of_every_batch(tiny_run, tiny_model, steps_of):
    batches = []
    for overrides in ((), PERCEIVER):
        steps = steps_of(tiny_run(*overrides), tiny_model(*overrides))
        batches.append([steps[i][0] for i in range(3)])
    for ours, theirs in zip(*batches, strict=True):
        assert ours.ids == theirs.ids
        assert ours.pixels.equal(theirs.pixels)
        assert ours.labels[ours.labels != -100].equal(theirs.labels[theirs.labels != -100])
    assert batches[0][0].ids != batches[0][1].ids


def test_another_seed_draws_other_weights_for_every_component(tiny_model):
    ours, theirs = tiny_model(*PERCEIVER).state_dict(), tiny_model(*PERCEIVER, "train.seed=1").state_dict()
    for component in ("vision", "resampler", "connector", "llm"):
        assert any(not ours[n].equal(theirs[n]) for n in ours if n.startswith(component)), component


def test_building_a_model_leaves_the_global_generator_alone(tiny_model):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tiny_model()
    assert torch.get_rng_state().equal(state)


def test_a_stream_depends_on_its_seed_and_on_the_borders_of_its_name():
    assert derive(0, "a", "bc") != derive(0, "ab", "c")
    assert derive(0, "a") != derive(1, "a")
    assert numpy_stream(0, "a").random() == numpy_stream(0, "a").random()
    with torch_stream(0, "a"):
        first = torch.rand(3)
    with torch_stream(0, "a"):
        assert torch.rand(3).equal(first)
