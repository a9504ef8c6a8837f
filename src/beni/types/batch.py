"""A micro-batch on its way from the loader to the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from beni.types.images import ImageLayout, Pixels
from beni.types.inputs import ImageInputs, SampleInputs
from beni.types.sequence import IGNORE


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor or a list of tensors on ``device`` (copies are asynchronous from pinned memory); others as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [one.to(device, non_blocking=True) for one in value] if isinstance(value, list) else value


def pinned(value: Any) -> Any:
    """A tensor or a list of tensors in page-locked memory; others as they are."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    return [one.pin_memory() for one in value] if isinstance(value, list) else value


TENSORS = ("input_ids", "labels", "position_ids", "pixels", "attention_mask", "cu_seqlens", "owners")
"""Fields of a ``Batch`` that are copied to the device."""


@dataclass
class Batch:
    """One micro-batch of one rank, in one of two layouts.

    ``packed``: one row that holds all samples end to end; ``cu_seqlens`` are the borders of its segments and
    ``position_ids`` restart at each. ``padded``: one row a sample with an ``attention_mask``.

    Attributes:
        labels: -100 where nothing is supervised; ``labels[t]`` is the token *at* t, predicted from t - 1.
        pixels: all views of all images of the micro-batch, in reading order; a list of them where their sizes differ,
            None when there is no image.
        pixel_keys: a hash of the pixels of each view, where the run has a feature bank.
        longest: at least as long as any segment.
        layouts: how each image became views, in reading order.
        owners: the sample (0, 1, ... within the micro-batch) that each image belongs to.
        ids: sample ids, in order, for logs.
        prompts: what the user says in each sample, in order.
        counts: what the micro-batch holds, by source (data/batch/ledger.py).
        faults: pictures that could not be had, as lines of data_errors.jsonl.
        order: hash of the data order of the whole step; ranks compare it.
        notices: what the process that drew it wants a person to know.
    """

    input_ids: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    position_ids: Int[Tensor, "b t"]
    pixels: Pixels | None
    attention_mask: Int[Tensor, "b t"] | None = None
    cu_seqlens: Int[Tensor, "s_plus_1"] | None = None
    longest: int | None = None
    layouts: tuple[ImageLayout, ...] = ()
    owners: Int[Tensor, "k"] | None = None
    pixel_keys: tuple[str, ...] = ()
    ids: list[str] = field(default_factory=list)
    prompts: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    faults: tuple[dict[str, Any], ...] = ()
    order: int = 0
    notices: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Supervised tokens, a position that nothing can predict (the first of a segment) excluded at collate time."""
        return int((self.labels != IGNORE).sum())

    @property
    def lengths(self) -> list[int]:
        """Real positions of each sample."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff().tolist()
        rows, width = self.input_ids.shape
        return [width] * rows if self.attention_mask is None else self.attention_mask.sum(1).tolist()

    @property
    def num_tokens(self) -> int:
        """Real positions, visual ones included, padding excluded."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        """The batch with every tensor on ``device`` (copies are asynchronous from pinned memory)."""
        return replace(self, **{name: to_device(getattr(self, name), device) for name in TENSORS})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while it computes; a ``DataLoader`` asks."""
        return replace(self, **{name: pinned(getattr(self, name)) for name in TENSORS})

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of ``BeniForConditionalGeneration.forward``."""
        return {
            "input_ids": self.input_ids,
            "pixels": self.pixels,
            "labels": self.labels,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "images": ImageInputs(self.layouts, self.owners, self.pixel_keys),
            "samples": SampleInputs(self.cu_seqlens, self.longest, tuple(self.ids), self.prompts),
        }
