"""What sharding refuses, and how processes are grouped; that it trains as one process does is in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beni.distributed.environment import Environment
from beni.distributed.fsdp import shard, shards, tied
from beni.errors import ConfigError

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
