"""What a checkpoint holds for each optimizer, and that a run goes on from it with the same bits."""

from __future__ import annotations

import pytest
import torch

from beni.errors import ResumeError
from beni.training.checkpoint import shards
from beni.training.checkpoint.tensors import Initial, named_tensors, scatter
from beni.training.ema import Average
from beni.training.optim.build import build_optimizer
from unit.training.optim.test_build import OWN, require

FOUR = ("train.steps=4", "checkpoint.every=2", "connector.dropout=0.2", "llm.architecture.intermediate_size=128")
"""At 128 the 8-bit optimizer has matrices of 4096 values, which are what it quantizes."""
PHASES = ("train.ema=0.9", "train.thaw.llm=0.5", "train.thaw.vision=0.7", "optim.layer_decay.llm=0.5")


@pytest.mark.parametrize("phases", [(), PHASES], ids=["plain", "phases"])
@pytest.mark.parametrize("name", OWN)
def test_a_run_resumed_after_two_steps_has_the_bits_of_an_uninterrupted_one(
    tiny_run, fit, tmp_path, absent, name, phases
):
    require(name, absent)
    run = tiny_run(f"optim={name}", *FOUR, *phases)
    whole_model, expected = fit(run, tmp_path / "whole")
    _, before = fit(run, tmp_path / "cut", stop=3)
    resumed, after = fit(run, tmp_path / "cut")
    assert after.began == 2
    assert before.losses | after.losses == expected.losses
    assert len(set(expected.losses.values())) == 4
    theirs = resumed.state_dict()
    for key, tensor in whole_model.state_dict().items():
        assert theirs[key].equal(tensor), key
    assert set(after.notices) <= set(expected.notices)


def trained(tiny_model, name):
    """A model after a step, its optimizer and its average."""
    from unit.training.optim.test_build import SETTINGS

    model = tiny_model("train.plan.vision=frozen")
    optimizer, average = build_optimizer(model, SETTINGS | {"optimizer": name} | OWN[name]), Average(model, 0.5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    optimizer.zero_grad()
    average.update()
    return model, optimizer, average


@pytest.fixture
def saved(tmp_path):
    """saved(tensors) -> the same, written and opened again."""

    def write(tensors):
        path = tmp_path / "state.safetensors"
        shards.write(path, shards.staged(shards.own_pieces(tensors, 0, 1)))
        return shards.SavedTensors([path])

    return write


def test_what_no_gradient_reached_is_not_in_a_checkpoint(tiny_model):
    model, optimizer, average = trained(tiny_model, "adamw")
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    del optimizer.state[parameter]
    assert not [key for key in named_tensors(model, optimizer, average) if f"/{name}" in key]


def test_restored_it_is_as_it_was_built(tiny_model):
    model = tiny_model("train.plan.vision=frozen")
    built = {name: p.detach().clone() for name, p in model.named_parameters()}
    initial = Initial(model)
    _, optimizer, average = trained(lambda _: model, "adamw")
    assert any(not p.equal(built[name]) for name, p in model.named_parameters())
    initial.restore(optimizer, average)
    assert named_tensors(model, optimizer, average) == {}
    for name, parameter in model.named_parameters():
        assert parameter.equal(built[name]), name
        assert average.tensors.get(name, parameter).equal(parameter), name


def test_the_named_tensors_are_the_live_ones_and_the_staged_ones_copies(tiny_model):
    model, optimizer, average = trained(tiny_model, "muon")
    live = named_tensors(model, optimizer, average)
    copies = {key: piece.tensor for key, piece in shards.staged(shards.own_pieces(live, 0, 1)).items()}
    name = "llm.model.model.layers.0.mlp.up_proj.weight"
    live[f"model/{name}"].zero_()
    live[f"average/{name}"].zero_()
    live[f"optimizer/{name}/momentum_buffer"].zero_()
    parameter = dict(model.named_parameters())[name]
    assert not parameter.any()
    assert not optimizer.state[parameter]["momentum_buffer"].any()
    assert not average.tensors[name].any()
    assert all(copies[key].any() for key in copies if name in key)


def test_plain_numbers_of_a_state_come_back_as_they_were(tiny_model, saved):
    model, optimizer, average = trained(tiny_model, "adafactor")
    parameter = next(iter(optimizer.state))
    tensors = named_tensors(model, optimizer, average)
    optimizer.state[parameter]["count"] = 7
    key = next(k for k in tensors if k.startswith("optimizer/"))
    counted = tensors | {key.rpartition("/")[0] + "/count": torch.tensor(9)}
    # the step that prepares a state would not make such an entry; it is there already here
    scatter(saved(counted), model, optimizer, average)
    assert optimizer.state[parameter]["count"] == 9
    assert isinstance(optimizer.state[parameter]["count"], int)


def test_a_checkpoint_of_another_optimizer_is_refused(tiny_model, saved):
    theirs = saved(named_tensors(*trained(tiny_model, "adamw")))
    model, optimizer, average = trained(tiny_model, "adafactor")
    with pytest.raises(ResumeError, match=r"of another optimizer: no such tensors here as optimizer/"):
        scatter(theirs, model, optimizer, average)


def test_a_checkpoint_with_an_average_is_refused_by_a_run_without(tiny_model, saved):
    model, optimizer, average = trained(tiny_model, "adamw")
    theirs = saved(named_tensors(model, optimizer, average))
    with pytest.raises(ResumeError, match="average/"):
        scatter(theirs, model, optimizer, Average(model, 0.0))
