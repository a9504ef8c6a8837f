"""What a training step tells the model beside the micro-batch, and what the model gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from beni.data.batch.collate import stack_views
from beni.errors import DataError
from beni.stage import Sink
from beni.types import ImageInputs, SampleInputs

Loss = Literal["auto", "full", "chunked", "fused"]
"""How head and loss are computed (model/loss.py)."""


@dataclass(frozen=True)
class CallCounts:
    """How often a micro-batch calls the encoder, and the stages between views and fusion.

    Ranks that share weights must call alike: each call gathers them. Those with fewer sizes or grids repeat a call, and
    the result counts for nothing.
    """

    encoder: int = 0
    stages: int = 0


@dataclass(frozen=True)
class StepInputs:
    """The optimizer step that a micro-batch is part of.

    Attributes:
        num_items: what the summed token loss is divided by: the labels of the whole step. Those of the micro-batch when
            None.
        auxiliary: ``<stage>/<name>`` -> what the sum of that auxiliary loss is divided by: the rows or tokens of the
            whole step. Those of the micro-batch where it is not named.
        step: optimizer steps that are finished.
        steps: of the whole run; 0 outside of training.
        calls: that every rank of a sharded model makes now; one without images encodes a blank one, which counts for
            nothing. None where ranks share nothing.
        loss: how head and loss are computed; only ``full`` is sure to return logits.
        wants_pictures: stages are to leave what can be drawn over the images.
        auxiliary_by_labels: sums of auxiliary losses are divided by this micro-batch's own count, and weighted by its
            share of ``num_items``: for loops that count labels only.
    """

    num_items: int | Tensor | None = None
    auxiliary: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    steps: int = 0
    calls: CallCounts | None = None
    loss: Loss = "full"
    wants_pictures: bool = False
    auxiliary_by_labels: bool = False


@dataclass
class BeniOutput(ModelOutput):
    """What ``forward`` returns.

    Attributes:
        loss: what training follows: the token loss and all auxiliary losses; None without labels.
        logits: ``(k, v)`` at the positions that predict a label, or ``(b, t, v)`` without labels; None where the loss
            was computed without keeping them.
        token_loss: summed token losses divided by ``StepInputs.num_items``.
        auxiliary: ``<stage>/<name>`` -> an auxiliary loss, divided by the count of the step.
        targets: ``(k,)`` label ids.
        rows: ``(k,)`` batch row of each label.
        columns: ``(k,)`` position of each label in its row, positions that fusion has dropped left out.
        samples: ``(k,)`` number of the sample of each label.
        lengths: ``(s,)`` real positions of each sample, where fusion has dropped some; else None.
        sink: what the stages left.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_loss: Tensor | None = None
    auxiliary: dict[str, Tensor] | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    samples: Tensor | None = None
    lengths: Tensor | None = None
    sink: Sink | None = None


def on_device(images: ImageInputs, samples: SampleInputs, device: torch.device) -> tuple[ImageInputs, SampleInputs]:
    """Both with their tensors on ``device``: a loop that knows no such inputs has moved the other tensors only."""
    if images.owners is not None and images.owners.device != device:
        images = replace(images, owners=images.owners.to(device))
    if samples.cu_seqlens is not None and samples.cu_seqlens.device != device:
        samples = replace(samples, cu_seqlens=samples.cu_seqlens.to(device))
    return images, samples


def merged(
    images: ImageInputs | Sequence[ImageInputs], samples: SampleInputs | Sequence[SampleInputs], rows: int
) -> tuple[ImageInputs, SampleInputs]:
    """Both of a whole batch, where a loop that knows no such inputs has put those of its prompts side by side: one of
    each for every row, as transformers' pipeline does.

    Raises:
        DataError: when there are not as many as rows.
    """
    return (
        images if isinstance(images, ImageInputs) else _all_images(_each(images, rows, "images")),
        samples if isinstance(samples, SampleInputs) else _all_samples(_each(samples, rows, "samples")),
    )


def _each(given: Sequence[Any], rows: int, name: str) -> Sequence[Any]:
    if len(given) != rows:
        raise DataError(
            f"{name} is a list of {len(given)} for {rows} rows\n"
            "  fix: give one for each row, or let the processor build the batch from a list of conversations"
        )
    return given


def _all_images(each: Sequence[ImageInputs]) -> ImageInputs:
    owners = [row for row, images in enumerate(each) for _ in images.layouts]
    pixels = [images.pixels for images in each if images.pixels is not None]
    return ImageInputs(
        layouts=tuple(layout for images in each for layout in images.layouts),
        owners=torch.tensor(owners),
        keys=tuple(key for images in each for key in images.keys),
        pixels=stack_views([view for views in pixels for view in views]) if len(pixels) == len(each) else None,
    )


def _all_samples(each: Sequence[SampleInputs]) -> SampleInputs:
    ids, prompts = [one.ids for one in each], [one.prompts for one in each]
    return SampleInputs(ids=sum(ids, ()) if all(ids) else (), prompts=sum(prompts, ()) if all(prompts) else ())
