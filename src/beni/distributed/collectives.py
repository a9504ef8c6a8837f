"""The few collectives a data-parallel step needs; each is the identity in a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from beni.errors import BeniError, DataError

Value = TypeVar("Value")
FOREVER = timedelta(days=365)
"""Collectives wait until the watchdog ends the run: torch's own limits, 10 minutes and 30, are shorter than a download
of weights or an export that the others wait for may be."""


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum of a number over all ranks."""
    return sums([value], device)[0]


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Element by element, the sum over all ranks, also of what no 64-bit integer holds."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def sum_values(values: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Element by element, the sum over all ranks, in double precision; without waiting for the device."""
    if world_size() == 1:
        return values
    total = values.double()
    dist.all_reduce(total)
    return total


def sum_counts(values: Sequence[int], device: torch.device) -> list[int]:
    """Element by element, the sum over all ranks."""
    if world_size() == 1 or not values:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def agree(value: int, wishes: Sequence[bool], device: torch.device) -> tuple[bool, list[bool]]:
    """Whether all ranks hold the same number (below 2^63), and which wishes any rank has; in one collective."""
    if world_size() == 1:
        return True, list(wishes)
    highest, negated_lowest, *wished = max_over_ranks([value, -value, *map(int, wishes)], device)
    return highest == -negated_lowest, [bool(wish) for wish in wished]


def any_rank(wish: bool) -> bool:
    """Whether any rank has a wish; over the CPU, where a rank that reads weights is waited for longest."""
    return agree(0, [wish], torch.device("cpu"))[1][0]


def gather_objects(values: list[Any]) -> list[Any]:
    """The lists of all ranks, joined in the order of the ranks."""
    if world_size() == 1:
        return values
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def raise_alike(error: Exception | None) -> NoReturn:
    """Called by all ranks when some have met an error: raises their own there.

    Raises:
        DataError: on the others, naming the rank and what it met; RuntimeError where that is a bug.
    """
    mine = [] if error is None else [(_rank(), isinstance(error, BeniError), str(error), type(error).__name__)]
    (rank, known, text, kind), *_ = gather_objects(mine)
    if error is not None:
        raise error
    raise DataError(f"rank {rank}: {text}") if known else RuntimeError(f"rank {rank} failed, {kind}: {text}")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


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


def wait_for_ever(group: dist.ProcessGroup | None = None) -> None:
    """Lets collectives of a group (all ranks when None) wait as long as the watchdog lets them."""
    dist.distributed_c10d._set_pg_timeout(FOREVER, group)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


class Peers:
    """The ranks, over a group of their own: two threads on one group would mix up each other's collectives.

    Made by all ranks at once. What is sent are plain values.
    """

    def __init__(self) -> None:
        self.world = world_size()
        self.rank = _rank()
        self._group: Any = dist.new_group(backend="gloo", timeout=FOREVER) if self.world > 1 else None

    def gather(self, value: Value) -> list[Value]:
        """What each rank gave, in their order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns on rank 0, where alone it is called.

        Raises:
            BeniError: what it raises there; on the others with the same text.
        """
        if self._group is None:
            return make()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = make()
            except BeniError as error:
                dist.broadcast_object_list([None, str(error)], src=0, group=self._group)
                raise
        dist.broadcast_object_list(told, src=0, group=self._group)
        value, problem = told
        if problem is not None:
            raise BeniError(problem)
        return value
