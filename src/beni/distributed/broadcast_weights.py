"""Pretrained weights are read by one process; the others build without them and are handed their part after sharding.

So weights are read and downloaded once, no process but the first ever holds a whole model, and a GPU holds no more than
its part and one tensor. A checkpoint's names and their history stay transformers' business, and buffers that no file
holds (rotary frequencies, position ids) arrive like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from beni.distributed.environment import Environment


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, saved or not; tied ones once.

    Aliases: sharding moves each whole parameter to the GPU by its ``data``, and a name for the parameter itself would
    keep it there.
    """
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def broadcast_weights(model: nn.Module, whole: Mapping[str, Tensor], environment: Environment, offload: bool) -> None:
    """Gives every process of a sharded model its part of every tensor. Called by all.

    Args:
        model: sharded; on any device, the meta device included, and on ``environment.device`` afterwards.
        whole: what ``tensors_of`` gave before sharding, on the first process; the others' is not read.
        offload: sharded parameters stay on the CPU.
    """
    _settle(model, environment.device, offload)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            if not tensor.numel():
                continue
            full = torch.empty(tensor.shape, dtype=tensor.dtype, device=environment.device)
            if environment.is_main:
                full.copy_(whole[name])
            dist.broadcast(full.view(-1).view(torch.uint8), src=0)  # bytes: a backend may not know the type
            if isinstance(tensor, DTensor):
                part = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
                tensor.to_local().copy_(part.to_local())
            else:
                tensor.copy_(full)


def _settle(model: nn.Module, device: torch.device, offload: bool) -> None:
    """Puts every tensor where it will stay: what was on the meta device is there afterwards, with any values.

    ``Module._apply`` would make two of a tied parameter.
    """
    new: dict[int, Any] = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                place = torch.device("cpu") if offload and isinstance(tensor, DTensor) else device
                if tensor.device == place:
                    continue
                if id(tensor) not in new:
                    moved = torch.empty_like(tensor, device=place) if tensor.is_meta else tensor.detach().to(place)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    # the old one is kept as well: its id must not be given to another meanwhile
                    kept = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
                    new[id(tensor)] = (kept, tensor)
                kind[name] = new[id(tensor)][0]
