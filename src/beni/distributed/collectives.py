"""The few collectives a data-parallel step needs; each is the identity in a single process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Element by element, whether any rank says True."""
    if world_size() == 1 or not flags:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.bool().tolist()


def sum_gradients(parameters: Iterable[Tensor], device: torch.device) -> None:
    """Adds up the gradients of replicated parameters over ranks; sharded ones (DTensor) are FSDP's business.

    A parameter that no rank used keeps no gradient, so the optimizer leaves it alone as it does in a single process.
    """
    if world_size() == 1:
        return
    replicated = [p for p in parameters if not isinstance(p, DTensor)]
    used = any_rank([p.grad is not None for p in replicated], device)
    for parameter, wanted in zip(replicated, used, strict=True):
        if wanted:
            if parameter.grad is None:  # this rank's micro-batches did not use it; others' did
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
