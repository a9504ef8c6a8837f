"""FSDP2: what trains is shared by processes, each llm layer, vision layer and the resampler a unit, the rest as one.

Three meshes make three modes: ``full`` shares weights over all processes, ``hybrid`` over those of one machine and
repeats that on every machine, ``ddp`` over groups of one: whole replicas, whose gradients are summed bucket by bucket
while the backward pass still runs. Frozen components are replicated (``ignored_params``) unless ``frozen=shard``: they
need no gradient, so sharing them only saves memory. The root unit holds embedding, final norm and head together, so a
tied pair is never split. Gradients are summed, not averaged: the loss is already divided by the label tokens of all
ranks (training.md section 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from beni.distributed.collectives import wait_for_ever
from beni.distributed.environment import Environment
from beni.errors import ConfigError

MET: WeakSet[nn.Module] = WeakSet()
"""Units that ``gather_all_units`` has gathered."""
ENTRY_POINTS = ("encode_images", "generate", "look")
"""Methods of the model beside ``forward`` that read its weights."""


def shard(
    model: nn.Module, units: list[nn.Module], environment: Environment, settings: Mapping[str, Any], precision: str
) -> None:
    """Shards ``model`` in place: each of ``units`` (given bottom-up) by itself, the rest as one.

    Args:
        settings: the ``fsdp`` section.

    Raises:
        ConfigError: when the processes cannot be divided as ``settings`` want, there is nothing to offload from, or
            two units share a weight.
    """
    if not is_sharded(environment.world, settings):
        return
    require_offload(environment.device, settings)
    bf16 = precision == "bf16"
    for parameter in model.parameters():  # FSDP2 refuses others, channels-last convolutions for instance
        parameter.data = parameter.data.contiguous()
    frozen = {p for p in model.parameters() if not p.requires_grad}
    ignored = frozen if settings["frozen"] == "replicate" else set()
    options: dict[str, Any] = {
        "mesh": _mesh(settings, environment),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if settings["offload"] else OffloadPolicy(),
        "ignored_params": ignored,
    }
    sharded = [unit for unit in units if any(p not in ignored for p in unit.parameters())]
    ties = tied(model)
    _require_whole(ties, model, sharded)
    for unit in sharded:
        fully_shard(unit, reshard_after_forward=settings["reshard_after_forward"], **options)
    fully_shard(model, **options)
    if tied(model) != ties:
        raise RuntimeError(f"sharding has separated tied weights: {ties} became {tied(model)}")
    # visual tokens and losses may be views; nothing of beni's changes them in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # evaluation calls these from outside forward; the root's weights must be whole there too
    for method in ENTRY_POINTS:
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # a plain sum: gloo has no pre-multiplied sum, so the factor must not be folded into the reduction
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def is_sharded(world: int, settings: Mapping[str, Any]) -> bool:
    """Whether so many processes shard the model under the ``fsdp`` section ``settings``, one to offload it."""
    return settings["mode"] != "none" and (world > 1 or settings["offload"])


def require_offload(device: torch.device, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError when the run offloads, but computes on a CPU."""
    if settings["offload"] and device.type == "cpu":
        raise ConfigError(
            "fsdp.offload=true, but this run computes on a CPU\n  fix: set fsdp.offload=false or compute.device=cuda"
        )


def gather_all_units(model: nn.Module) -> None:
    """Gathers each unit once, whether or not a forward pass has met it; called by all ranks, does nothing twice.

    Before a micro-batch whose gradients stay on their rank: FSDP2 (torch 2.13) then looks for gradients in the whole
    weights of every unit, and fails where there never were any, such as those of an encoder of which no picture has
    been asked yet.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule) and module is not model and module not in MET:
            module.unshard()
            module.reshard()
            MET.add(module)


def reshard(model: nn.Module) -> None:
    """Lets go of whole weights that a forward pass without a backward pass has left behind, where there are any: then
    ``parameters()`` gives what optimizers and checkpoints know.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shards(settings: Mapping[str, Any], world: int, local_world: int | None) -> int:
    """Processes that share one copy of what trains.

    Raises:
        ConfigError: when ``world`` processes do not divide into groups of that size.
    """
    if settings["mode"] in ("none", "ddp") or world == 1:
        return 1
    if settings["mode"] == "full":
        return world
    size = settings["shard_size"] or local_world
    if size is None:
        raise ConfigError(
            "fsdp=hybrid shares weights within a machine, but how many processes each has is not known\n"
            "  fix: start with torchrun, or set fsdp.shard_size"
        )
    if world % size:
        raise ConfigError(
            f"{world} processes do not divide into groups of {size} that share the weights\n"
            f"  fix: set fsdp.shard_size to a divisor of {world}"
        )
    return size


def tied(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of parameters that are one and the same, group by group."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return sorted(tuple(sorted(names)) for names in groups.values() if len(names) > 1)


def _mesh(settings: Mapping[str, Any], environment: Environment) -> DeviceMesh:
    world, kind = environment.world, environment.device.type
    size = shards(settings, world, environment.local_world)
    if size == world:
        return init_device_mesh(kind, (world,))
    mesh = init_device_mesh(kind, (world // size, size), mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():
        wait_for_ever(group)
    return mesh


def _require_whole(ties: list[tuple[str, ...]], model: nn.Module, units: list[nn.Module]) -> None:
    """Raises ConfigError when a weight lies in two units: each would shard and update its own."""
    paths = {id(module): name for name, module in model.named_modules()}
    prefixes = [f"{paths[id(unit)]}." for unit in units]
    for names in ties:
        homes = {next((prefix for prefix in prefixes if name.startswith(prefix)), "") for name in names}
        if len(homes) > 1:
            raise ConfigError(
                f"{' and '.join(names)} are one weight, but fsdp.mode would shard them apart\n  fix: set fsdp=none"
            )
