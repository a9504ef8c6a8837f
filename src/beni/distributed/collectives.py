"""The few collectives a data-parallel step needs; each is the identity in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum of a number over all ranks."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Adds up the gradients of replicated parameters over ranks; sharded ones (DTensor) are FSDP's business."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            if parameter.grad is None:  # this rank's micro-batches did not use it; others' may have
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
