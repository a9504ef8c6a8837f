"""FSDP2 sharding of what trains: llm layers, vision layers and the resampler, each a unit, plus the rest as one.

Frozen components are replicated (``ignored_params``): they need no gradient, so sharding them would only add
collectives. The root unit holds embedding, final norm and head together, so a tied pair is never split. Gradients are
summed, not averaged: the loss is already divided by the label tokens of all ranks (training.md section 3).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from beni.distributed.environment import Environment

ENTRY_POINTS = ("encode_images", "generate")
"""Methods of the model beside ``forward`` that read its weights."""


def shard(model: nn.Module, units: list[nn.Module], environment: Environment, precision: str) -> None:
    """Shards ``model`` in place over all ranks: each of ``units`` (given bottom-up) by itself, the rest as one."""
    if environment.world == 1:
        return  # nothing to shard over, and no process group to build a mesh from
    mesh = init_device_mesh(environment.device.type, (environment.world,))
    bf16 = precision == "bf16"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    for parameter in model.parameters():  # FSDP2 refuses others, channels-last convolutions for instance
        parameter.data = parameter.data.contiguous()
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for unit in units:
        if any(p.requires_grad for p in unit.parameters()):
            fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    # evaluation calls these from outside forward; the root's weights must be whole there too
    for method in ENTRY_POINTS:
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # a plain sum: gloo has no pre-multiplied sum, so the factor must not be folded into the reduction
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
