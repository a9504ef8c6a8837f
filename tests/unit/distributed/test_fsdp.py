"""What sharding refuses, how processes are grouped, one process that offloads; several are in tests/distributed."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from beni.distributed import fsdp
from beni.distributed.broadcast_weights import broadcast_weights, tensors_of
from beni.distributed.environment import Environment
from beni.distributed.fsdp import shard, shards, tied
from beni.errors import ConfigError
from beni.run import train

SETTINGS = {"mode": "full", "shard_size": None, "frozen": "replicate", "reshard_after_forward": True, "offload": False}
TWO = Environment(0, 2, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mode", "size", "local", "expected"),
    [("none", None, 4, 1), ("ddp", None, 4, 1), ("full", None, 4, 8), ("hybrid", None, 4, 4), ("hybrid", 2, 4, 2)],
)
def test_so_many_processes_share_a_copy(mode, size, local, expected):
    assert shards(SETTINGS | {"mode": mode, "shard_size": size}, 8, local) == expected


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"8 processes do not divide into groups of 3 .*\n  fix: .*divisor of 8"):
        shards(SETTINGS | {"mode": "hybrid", "shard_size": 3}, 8, None)


def test_hybrid_wants_to_know_the_processes_of_a_machine():
    with pytest.raises(ConfigError, match=r"not known\n  fix: start with torchrun, or set fsdp.shard_size"):
        shards(SETTINGS | {"mode": "hybrid"}, 8, None)


def test_offloading_from_a_cpu_is_refused():
    with pytest.raises(ConfigError, match=r"fsdp.offload=true, .*\n  fix: set fsdp.offload=false"):
        shard(nn.Linear(2, 2), [], TWO, SETTINGS | {"offload": True}, "fp32")


def test_a_run_that_offloads_from_a_cpu_ends_before_it_builds(tiny_run, tmp_path):
    run = tiny_run("fsdp=full", "fsdp.offload=true")
    with pytest.raises(ConfigError, match=r"fsdp.offload=true, .*computes on a CPU"):
        train(run)
    assert not list(tmp_path.iterdir())


def test_one_process_that_offloads_shards_and_trains_as_without(tiny_run, monkeypatch):
    """A CPU stands in for the GPU: what is offloaded takes the same way, but for the pinned copy."""
    seen, losses = [], {}
    monkeypatch.setattr("beni.run.require_offload", lambda *_: None)
    monkeypatch.setattr(fsdp, "require_offload", lambda *_: None)
    monkeypatch.setattr(fsdp, "CPUOffloadPolicy", lambda: CPUOffloadPolicy(pin_memory=False))

    def noted(model, *rest):
        broadcast_weights(model, *rest)
        seen.extend(isinstance(parameter, DTensor) for parameter in model.parameters())

    monkeypatch.setattr("beni.place.broadcast_weights", noted)
    for overrides in ((), ("fsdp=full", "fsdp.offload=true", "fsdp.frozen=shard")):
        folder = train(tiny_run(*overrides, "train.plan.vision=frozen", "optim.lr=1e-2", "eval.every=0"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[overrides] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert seen
    assert all(seen)
    plain, offloaded = losses.values()
    assert len(plain) == 2
    assert offloaded == pytest.approx(plain, rel=1e-5)
    assert not torch.distributed.is_initialized()


def test_what_is_handed_out_stays_where_it_was_built_and_keeps_no_parameter():
    model = nn.Linear(3, 3)
    whole, built = tensors_of(model), model.weight.detach().clone()
    parameter = weakref.ref(model.weight)
    model.weight.data = torch.zeros(3, 3)  # as fully_shard takes a parameter to the GPU
    assert whole["weight"].equal(built)
    model.weight = nn.Parameter(torch.zeros(1))
    assert parameter() is None


class Shared(nn.Module):
    """Two layers of which the second has a weight of the first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.layers[1].weight = self.layers[0].weight


def test_weights_that_are_one_are_found():
    assert tied(Shared()) == [("layers.0.weight", "layers.1.weight")]
    assert tied(nn.Linear(2, 2)) == []


def test_a_weight_in_two_units_is_refused(monkeypatch):
    monkeypatch.setattr("beni.distributed.fsdp._mesh", lambda *_: None)  # a mesh wants a process group
    model = Shared()
    with pytest.raises(
        ConfigError, match=r"layers.0.weight and layers.1.weight are one weight.*\n  fix: set fsdp=none"
    ):
        shard(model, list(model.layers), TWO, SETTINGS, "fp32")
