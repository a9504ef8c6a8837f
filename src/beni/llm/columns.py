"""Columns of a sequence: what layers and their attention are handed for some of them, and how all are put back."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.llm.readings import Readings
from beni.llm.row_attention import RowPlan
from beni.llm.segment_attention import SegmentPlan
from beni.types import Pruning, Sequence

Plan = RowPlan | SegmentPlan

PLANS = ("segments", "rows")
"""Keyword arguments by which beni's attention is handed its plan."""


def needs_plan(sequence: Sequence, readings: Readings) -> bool:
    """Whether the attention of transformers does not do for padded rows: some positions look ahead, have gates or leave
    on the way, or somebody reads along within attention.
    """
    more_than_causal = sequence.blocks is not None or sequence.log_gate is not None
    return more_than_causal or sequence.pruning is not None or bool(readings)


def plan_of(
    sequence: Sequence, columns: Int[Tensor, "b t"] | None = None, readings: Readings | None = None
) -> tuple[str, Plan]:
    """What beni's attention must know of a sequence in either layout, and the keyword argument for it.

    Args:
        columns: where each position stood before others left.
        readings: what is done to what attention reads.
    """
    if sequence.cu_seqlens is None:
        return "rows", replace(RowPlan.of(sequence, readings), columns=columns)
    blocks, gates, stood = (None if x is None else x[0] for x in (sequence.blocks, sequence.log_gate, columns))
    length = sequence.embeds.shape[1]
    plan = SegmentPlan.build(sequence.cu_seqlens, length, blocks, sequence.longest, gates, readings, stood)
    return "segments", plan


def plan_in(given: abc.Mapping[str, Any]) -> Plan:
    """The plan of beni's attention that a layer is handed; ValueError where it is handed none."""
    plan = next((given[name] for name in PLANS if name in given), None)
    if plan is None:
        raise ValueError("the llm does not pass beni's attention on, so no image token can leave between its layers")
    return plan


@dataclass(frozen=True)
class Left:
    """What is left behind a cut.

    Attributes:
        sequence: the positions, with their embeddings.
        real: False at padding.
        index: the column that each had in the whole sequence.
        moved: the column there whose rotary position each has.
        plan: for attention.
    """

    sequence: Sequence
    real: Bool[Tensor, "b k"]
    index: Int[Tensor, "b k"]
    moved: Int[Tensor, "b k"]
    plan: Plan


def put_back(whole: Float[Tensor, "b t d"], left: Left, hidden: Float[Tensor, "b k d"]) -> Float[Tensor, "b t d"]:
    """All hidden states, with those that are left in their columns."""
    real, index = left.real.to(hidden.device), left.index.to(hidden.device)
    new = torch.where(real[..., None], hidden.to(whole.dtype), columns_of(whole, index))  # padding stands for some
    return whole.scatter(1, index[..., None].expand_as(new), new)


def columns_of(values: Tensor, order: Int[Tensor, "b k"]) -> Tensor:
    """``(b, t, ...) -> (b, k, ...)``; one row of values may be that of all."""
    order = order.to(values.device)
    values = values.expand(len(order), *values.shape[1:])
    order = order.view(*order.shape, *(1,) * (values.ndim - 2))
    return values.gather(1, order.expand(*order.shape[:2], *values.shape[2:]))


def joined_columns(*parts: Tensor, order: Int[Tensor, "b k"]) -> Tensor:
    """Columns of several tensors that stand side by side."""
    return columns_of(torch.cat(parts, 1), order)


def mapped(change: Callable[..., Tensor], *values: Any) -> Any:
    """Tensors, or tuples of them, changed together."""
    if isinstance(values[0], Tensor):
        return change(*values)
    return tuple(mapped(change, *parts) for parts in zip(*values, strict=True))


def has_entries(value: Any, rows: int, width: int) -> bool:
    """Whether a layer's argument has an entry for each position: ``(rows or 1, width, ...)``, or a tuple of such."""
    if isinstance(value, tuple | list) and value:
        return all(has_entries(part, rows, width) for part in value)
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] in (1, rows) and value.shape[1] == width


def entries(value: Any) -> int:
    """Positions of such an argument."""
    return value.shape[1] if isinstance(value, Tensor) else entries(value[0])


def repeated(sequence: Sequence, times: int) -> Sequence:
    """Each row of a padded sequence so many times."""
    names = ("embeds", "position_ids", "images", "labels", "blocks", "log_gate", "mask")
    tensors = {name: getattr(sequence, name) for name in names}
    more = {name: tensor.repeat_interleave(times, 0) for name, tensor in tensors.items() if tensor is not None}
    return replace(sequence, **more)


def valued(sequence: Sequence, images: int, pruning: Pruning) -> Sequence:
    """A sequence of embeddings without values, with values of everything else: what leaves follows from those.

    Args:
        images: its first positions that are of images.
    """
    plain = Sequence.plain(torch.empty(*sequence.images.shape, 0, device="cpu"))
    plain.images[:, :images] = 0
    return replace(plain, embeds=sequence.embeds, pruning=pruning)
