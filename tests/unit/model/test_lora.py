"""LoRA goes where the plan says, starts as nothing, and is all that trains there."""

from __future__ import annotations

import pytest
import torch

from beni.model.plan import count_parameters

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
TARGETS = "adapter.targets=[q_proj,v_proj]"


@pytest.mark.parametrize("component", ["vision", "resampler", "llm"])
def test_adapters_are_only_inside_the_planned_component(tiny_model, component):
    model = tiny_model(*PERCEIVER, "adapter=lora", TARGETS, f"train.plan.{component}=lora")
    adapters = [n for n, _ in model.named_parameters() if "lora_" in n]
    assert adapters
    assert {n.partition(".")[0] for n in adapters} == {component}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{component}.")}
    assert trained == set(adapters)
    assert count_parameters(model)[component]["trained"] == sum(model.get_parameter(n).numel() for n in adapters)


def test_at_step_zero_a_model_with_adapters_equals_the_model_without(tiny_run, tiny_model, steps_of):
    plain, adapted = tiny_model(), tiny_model("adapter=lora", "train.plan.llm=lora")
    batch = steps_of(tiny_run(), plain)[0][0]
    with torch.no_grad():
        assert plain(**batch.model_inputs()).loss.equal(adapted(**batch.model_inputs()).loss)


def test_every_adapter_weight_trains_after_two_steps(tiny_run, tiny_model, steps_of):
    model = tiny_model("adapter=lora", "train.plan.llm=lora")
    batch = steps_of(tiny_run(), model)[0][0]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # B is zero at first, so A gets its gradient in the second step
        optimizer.zero_grad()
        model(**batch.model_inputs()).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
