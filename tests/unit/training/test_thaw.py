"""A component that waits does not change, and trains from its step on."""

from __future__ import annotations

import pytest
import torch

from beni.errors import TrainabilityError
from beni.model.costing.table import propagate
from beni.model.plan import plan_notices
from beni.training.thaw import Thaw

PLAN = {"vision": "full", "connector": "full", "llm": "full"}


@pytest.fixture
def weights(tiny_run, fit, tmp_path):
    """weights(*overrides) -> step -> the model's parameters after it, its modes, and the log."""

    def make(*overrides):
        from beni.model.build import build

        run = tiny_run("train.steps=6", "eval.every=1", "optim.lr=1e-2", *overrides)
        model, seen = build(run), {}

        def keep(step):
            seen[step] = {name: p.detach().clone() for name, p in model.named_parameters()}

        keep(0)
        _, log = fit(run, tmp_path, model=model, evaluate=keep)
        return model, seen, log

    return make


def changed(seen, component, step):
    """Whether a step moved a component."""
    return any(not seen[step][n].equal(seen[step - 1][n]) for n in seen[0] if n.startswith(f"{component}."))


def test_nothing_changes_before_the_thaw_and_everything_trains_after_it(weights):
    _, seen, log = weights("train.thaw.llm=0.5", "train.thaw.vision=0.6")  # 3 of 6 steps, and 3.6
    moves = {name: [changed(seen, name, step) for step in range(1, 7)] for name in ("connector", "llm", "vision")}
    assert moves == {"connector": [True] * 6, "llm": [False] * 3 + [True] * 3, "vision": [False] * 4 + [True] * 2}
    assert [text for text in log.notices if "train.thaw" in text] == [
        "llm trains from step 4 on (train.thaw)",
        "vision trains from step 5 on (train.thaw)",
    ]


def test_moments_begin_at_the_thaw(weights, tmp_path):
    from beni.training.checkpoint.files import read, steps

    weights("train.thaw.llm=0.5")
    saved = read(tmp_path, steps(tmp_path)[-1]).tensors
    assert float(saved["optimizer/llm.model.model.norm.weight/step"]) == 3
    assert float(saved["optimizer/connector.layers.0.weight/step"]) == 6


def test_adapters_wait_with_their_component(weights):
    _, seen, _ = weights("train.plan.llm=lora", "adapter=lora", "train.thaw.llm=0.5")
    moved = {name for name in seen[0] if not seen[6][name].equal(seen[3][name]) and name.startswith("llm.")}
    assert moved == {name for name in seen[0] if "lora_" in name}
    assert not any(changed(seen, "llm", step) for step in (1, 2, 3))


def test_what_waits_is_in_evaluation_mode_and_wants_no_gradient(tiny_model):
    model = tiny_model()
    thaw = Thaw(model, PLAN, {"llm": 0.5, "vision": 0.0}, steps=4, done=0)
    assert not model.llm.training
    assert model.connector.training
    assert model.vision.training
    assert not any(p.requires_grad for p in model.llm.parameters())
    assert thaw.due(1) == []
    model.eval()  # as evaluation leaves it
    thaw.set_modes()
    assert not model.llm.training
    assert thaw.due(2) == ["llm"]
    assert model.llm.training
    assert all(p.requires_grad for p in model.llm.parameters())
    assert thaw.due(3) == []


def test_after_the_block_everything_wants_gradients_again(tiny_model):
    model = tiny_model()
    for _ in range(2):
        with Thaw(model, PLAN, {"llm": 0.5}, steps=4, done=1) as thaw:
            assert not any(p.requires_grad for p in model.llm.parameters())
            assert thaw.trains == {"vision", "connector"}
        assert all(p.requires_grad for p in model.llm.parameters())


def test_after_its_time_a_component_trains_at_once(tiny_model):
    model = tiny_model()
    Thaw(model, PLAN, {"llm": 0.5}, steps=4, done=3)
    assert all(p.requires_grad for p in model.llm.parameters())


def test_a_run_in_which_everything_waits_is_refused(tiny_model):
    shares = {"llm": 0.5, "vision": 0.25, "connector": 0.5}
    with pytest.raises(TrainabilityError, match=r"nothing trains before step 2[^$]*fix: set train\.thaw\.vision=0"):
        Thaw(tiny_model(), PLAN, shares, steps=4, done=0)


def test_what_thaws_is_held_to_the_plan_in_its_first_step(tiny_run, fit, tmp_path):
    from beni.model.build import build

    run = tiny_run("train.steps=4", "train.thaw.connector=0.5")
    model = build(run)
    model.connector.unused = torch.nn.Linear(2, 2)
    with pytest.raises(TrainabilityError, match=r"no gradient reached connector\.unused"):
        fit(run, tmp_path / "whole", model=model)
    again = build(run)
    again.connector.unused = torch.nn.Linear(2, 2)
    with pytest.raises(TrainabilityError, match=r"no gradient reached connector\.unused"):
        fit(run, tmp_path / "whole", model=again)


@pytest.mark.parametrize("key", ["train.thaw.resampler", "optim.lr_scale.resampler"])
def test_what_is_said_of_the_training_of_a_part_without_weights_is_refused(tiny_run, key):
    with pytest.raises(
        TrainabilityError, match=rf"{key}=0.5, but resampler=none has no weights\n  fix: leave out {key}"
    ):
        propagate(tiny_run(f"{key}=0.5", "resampler=none"))
    propagate(tiny_run(f"{key}=0.5", "resampler=perceiver"))


def test_a_plan_for_a_part_without_weights_is_told(tiny_run):
    run = tiny_run("train.plan.resampler=frozen", "resampler=none")
    assert list(plan_notices(propagate(run), run)) == [
        "train.plan.resampler=frozen changes nothing: resampler=none has no weights"
    ]
    run = tiny_run("train.plan.resampler=frozen", "resampler=perceiver")
    assert list(plan_notices(propagate(run), run)) == []


def test_an_attention_that_packed_training_does_not_use_is_told(tiny_run):
    packed, padded = (
        tiny_run("llm.attn_implementation=eager", f"compute.layout={layout}") for layout in ("packed", "padded")
    )
    assert "attn_implementation=eager is for generation" in next(plan_notices(propagate(packed), packed))
    assert list(plan_notices(propagate(padded), padded)) == []


def test_a_cnn_that_learns_from_nothing_at_the_rate_of_the_rest_is_told(tiny_run):
    cnn = ("vision.architecture.model_type=resnet", "vision.image_size=64", "train.plan.vision=full")
    told, scaled, frozen = (
        list(plan_notices(propagate(run), run))
        for run in (
            tiny_run(*cnn),
            tiny_run(*cnn, "optim.lr_scale.vision=0.1"),
            tiny_run(*cnn[:2], "train.plan.vision=frozen"),
        )
    )
    assert [line for line in told if "optim.lr_scale.vision=0.03" in line] == told != []
    assert scaled == frozen == []


def test_a_gate_that_drops_before_it_was_trained_is_told(tiny_run):
    run = tiny_run("selector=gate_gumbel", "selector.phase=drop")
    assert "drops tokens nearly at random" in next(plan_notices(propagate(run), run))
    run["train"]["init_from"] = "runs/soft"
    assert list(plan_notices(propagate(run), run)) == []
