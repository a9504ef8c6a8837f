"""What is planned to train does, what is frozen does not change; a difference is an error that names the tensors."""

from __future__ import annotations

import pytest
import torch

from beni.errors import TrainabilityError
from beni.training.trainable import TrainabilityCheck, set_modes, store_frozen_in_bf16


def test_a_planned_part_without_gradient_is_an_error(tiny_run, tiny_model, steps_of):
    model = tiny_model("data.text_share=1.0", "data.pictures_share=0", "train.plan.vision=frozen")
    check = TrainabilityCheck.before_first_step(model)
    model(
        **steps_of(tiny_run("data.text_share=1.0", "data.pictures_share=0"), model)[0][0].model_inputs()
    ).loss.backward()
    with pytest.raises(TrainabilityError, match=r"connector should train, but no gradient reached connector\."):
        check.gradients(model)


def test_a_component_that_is_to_train_and_wants_no_gradient_is_an_error(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    model.llm.requires_grad_(False)
    model(**steps_of(tiny_run(), model)[0][0].model_inputs()).loss.backward()
    TrainabilityCheck.before_first_step(model, {"connector"}).gradients(model)
    check = TrainabilityCheck.before_first_step(model, {"connector", "llm", "selector"})
    with pytest.raises(TrainabilityError, match=r"llm should train, but all its tensors are frozen: llm\."):
        check.gradients(model)


def test_single_silent_tensors_of_a_backbone_are_named_and_no_error(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    model.vision.unused = torch.nn.Linear(2, 2)
    check = TrainabilityCheck.before_first_step(model)
    model(**steps_of(tiny_run(), model)[0][0].model_inputs()).loss.backward()
    assert check.gradients(model) == ["vision.unused.weight", "vision.unused.bias"]
    model.connector.unused = torch.nn.Linear(2, 2)
    with pytest.raises(TrainabilityError, match=r"no gradient reached connector\.unused\.weight"):
        check.gradients(model)


def test_a_frozen_tensor_that_changes_is_an_error(tiny_model):
    model = tiny_model("train.plan.vision=frozen")
    check = TrainabilityCheck.before_first_step(model)
    check.after_first_step(model)
    name, frozen = next((n, p) for n, p in model.named_parameters() if not p.requires_grad and p.numel() < 1000)
    frozen.data.flatten()[-1] += 1
    with pytest.raises(TrainabilityError, match=f"frozen tensors changed in a step: {name}"):
        check.after_first_step(model)


def test_the_loop_checks_the_first_step(tiny_run, fit, tmp_path):
    with pytest.raises(TrainabilityError, match="no gradient reached connector"):
        fit(tiny_run("data.text_share=1.0", "data.pictures_share=0", "train.plan.vision=frozen"), tmp_path)


def test_a_plan_that_trains_nothing_is_an_error(tiny_model):
    plan = [f"train.plan.{c}=frozen" for c in ("vision", "connector", "llm")]
    with pytest.raises(TrainabilityError, match="nothing trains under the plan vision=frozen"):
        tiny_model(*plan)


def test_frozen_matrices_are_stored_in_bf16_and_all_else_in_fp32(tiny_run, tiny_model):
    overrides = ("train.plan.vision=frozen", "train.plan.llm=lora", "adapter=lora")
    model = tiny_model(*overrides)
    store_frozen_in_bf16(model, tiny_run(*overrides)["train"]["plan"])
    for name, parameter in model.named_parameters():
        half = not parameter.requires_grad and parameter.ndim >= 2
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name


def test_training_with_bf16_storage_stays_near_fp32(tiny_run, fit, tmp_path):
    from beni.model.build import build

    losses = {}
    for precision in ("fp32", "bf16"):
        run = tiny_run(
            "train.plan.vision=frozen", "train.plan.llm=lora", "adapter=lora", f"compute.precision={precision}"
        )
        model = build(run)
        if precision == "bf16":
            store_frozen_in_bf16(model, run["train"]["plan"])
        losses[precision] = fit(run, tmp_path / precision, model=model)[1].losses
    assert losses["bf16"] != losses["fp32"]
    for step, loss in losses["fp32"].items():
        assert losses["bf16"][step] == pytest.approx(loss, rel=2e-2)


def test_frozen_parts_and_every_batch_norm_keep_their_evaluation_behaviour(tiny_run, tiny_model):
    model = tiny_model("train.plan.vision=frozen")
    model.connector.norm = torch.nn.BatchNorm1d(32)
    set_modes(model, tiny_run("train.plan.vision=frozen")["train"]["plan"])
    assert not any(m.training for m in model.vision.modules())
    assert not model.connector.norm.training
    assert model.connector.training
    assert model.llm.model.training
    before = model.connector.norm.running_mean.clone()
    model.connector.norm(torch.randn(5, 32) + 3)
    assert model.connector.norm.running_mean.equal(before)
