"""The few collectives a data-parallel step needs; each is the identity in a single process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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


def sum_counts(values: Sequence[int], device: torch.device) -> list[int]:
    """Element by element, the sum over all ranks."""
    if world_size() == 1 or not values:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def agree(value: int, device: torch.device) -> bool:
    """Whether all ranks hold the same number (below 2^63)."""
    if world_size() == 1:
        return True
    highest, negated_lowest = max_over_ranks([value, -value], device)
    return highest == -negated_lowest


def gather_objects(values: list[Any]) -> list[Any]:
    """The lists of all ranks, joined in the order of the ranks."""
    if world_size() == 1:
        return values
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def max_over_ranks(values: Sequence[int], device: torch.device) -> list[int]:
    """Element by element, the largest of any rank."""
    if world_size() == 1 or not values:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def sum_gradients(parameters: Iterable[Tensor], device: torch.device) -> None:
    """Adds up the gradients of replicated parameters over ranks; sharded ones (DTensor) are FSDP's business.

    A parameter that no rank used keeps no gradient, so the optimizer leaves it alone as it does in a single process.
    """
    if world_size() == 1:
        return
    replicated = [p for p in parameters if not isinstance(p, DTensor)]
    used = max_over_ranks([int(p.grad is not None) for p in replicated], device)
    for parameter, wanted in zip(replicated, used, strict=True):
        if wanted:
            if parameter.grad is None:  # this rank's micro-batches did not use it; others' did
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
