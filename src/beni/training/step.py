"""One optimizer step: every micro-batch forward and backward under one normalisation, then clip and update.

The summed token loss of each micro-batch is divided by the label tokens of *all* micro-batches and ranks, so 1x8, 2x4
and 8x1 micro-batching give one gradient, and a short answer weighs as much a token as a long one. So it is with
auxiliary losses, which are sums over rows or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from beni.distributed.collectives import (
    agree,
    gather_objects,
    max_over_ranks,
    raise_alike,
    sum_counts,
    sum_gradients,
    sum_values,
)
from beni.distributed.fsdp import gather_all_units
from beni.measure.goodput import Goodput
from beni.model.inputs import CallCounts, Loss, StepInputs
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast
from beni.types import Batch


def errors_as_values(drawing: Iterable[list[Batch]]) -> Iterator[list[Batch] | Exception]:
    """What is drawn; where that fails the error, and no more."""
    try:
        yield from drawing
    except Exception as error:
        yield error


def agree_on_batches(
    drawn: list[Batch] | Exception, step: int, wishes: Sequence[bool], device: torch.device
) -> tuple[list[Batch], list[bool]]:
    """The batches of a step, and which wishes any rank has; in one collective.

    Raises:
        Exception: what drawing raised on this rank.
        DataError: on the other ranks, the same in words; RuntimeError where it is a bug.
        RuntimeError: when ranks drew different samples.
    """
    failed = isinstance(drawn, Exception)
    same, [broken, *wished] = agree(0 if failed else drawn[0].order, [failed, *wishes], device)
    if broken:
        raise_alike(drawn if failed else None)
    if failed or not same:
        raise RuntimeError(f"ranks drew different samples for step {step + 1}; do they see the same files?")
    return drawn, wished


@dataclass(frozen=True)
class StepResult:
    """What the forward and backward passes of a step come to. Tensors stay on the device until somebody reads them.

    Attributes:
        loss: mean over all label tokens of the step, auxiliary losses not among it; the same on every rank.
        labels: how many there were, on all ranks.
        auxiliary: ``<stage>/<name>`` -> auxiliary loss of the step; the same on every rank.
        metrics: ``<stage>/<name>`` -> sum and count of what stages have left on this rank.
        lengths: real positions of each sample of each micro-batch; None for one from which nothing was dropped.
    """

    loss: Float[Tensor, ""]
    labels: int
    auxiliary: dict[str, Float[Tensor, ""]]
    metrics: dict[str, tuple[Tensor, int]]
    lengths: list[Tensor | None]


def forward_backward(
    model: BeniForConditionalGeneration,
    batches: Sequence[Batch],
    step: int,
    device: torch.device,
    precision: str,
    how: Loss = "full",
    clock: Goodput | None = None,
    steps: int = 0,
) -> StepResult:
    """Gradients of one step, summed over micro-batches and ranks.

    Args:
        step: optimizer steps that are finished.
        how: the loss is computed (model/loss.py).
        clock: is told of copies and collectives.
        steps: of the whole run, for schedules inside a stage; 0 where there is none.
    """
    clock = clock or Goodput(device)
    auxiliary = sum_each([model.auxiliary_counts(batch.layouts) for batch in batches])
    with clock.inside("communication"):
        labels, *counts = sum_counts([sum(batch.num_labels for batch in batches), *auxiliary.values()], device)
    told = StepInputs(labels, dict(zip(auxiliary, counts, strict=True)), step, steps, loss=how)
    # under sharding every rank must gather the same weights in the same order, whatever images it has
    sharded = isinstance(model, FSDPModule)
    calls = _calls_of_all_ranks(model, batches, device) if sharded else [None] * len(batches)
    if sharded and len(batches) > 1:
        gather_all_units(model)
    sums = torch.zeros(1 + len(auxiliary), device=device)
    metrics: dict[str, tuple[Tensor, int]] = {}
    lengths = []
    for i, batch in enumerate(batches):
        if sharded:
            model.set_requires_gradient_sync(i == len(batches) - 1)
        with clock.inside("copy"):
            there = batch.to(device)
        with autocast(device, precision):
            out = model(**there.model_inputs(), how=replace(told, calls=calls[i]))
        if out.loss.requires_grad:  # a text alone has nothing to tell a connector when all else is frozen
            out.loss.backward()
        zero = torch.zeros((), device=device)
        sums += torch.stack([out.token_loss.detach(), *(out.auxiliary.get(n, zero).detach() for n in auxiliary)])
        for name, (total, count) in out.sink.metrics.items():
            before, counted = metrics.get(name, (zero, 0))
            metrics[name] = before + total, counted + count
        lengths.append(out.lengths)
    with clock.inside("communication"):
        sum_gradients((p for p in model.parameters() if p.requires_grad), device)
        loss, *losses = sum_values(sums)
    return StepResult(loss, labels, dict(zip(auxiliary, losses, strict=True)), metrics, lengths)


def sum_each(many: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Name by name, the sum of several; all have the same names."""
    return {name: sum(one[name] for one in many) for name in (many[0] if many else ())}


def mean_metrics(metrics: Mapping[str, tuple[Tensor, int]]) -> dict[str, float]:
    """Name -> mean over all ranks, of which some may lack a name; called by all."""
    mine = [(name, float(total), count) for name, (total, count) in metrics.items()]
    sums: dict[str, tuple[float, int]] = {}
    for name, total, count in gather_objects(mine):
        before, counted = sums.get(name, (0.0, 0))
        sums[name] = before + total, counted + count
    return {name: total / max(count, 1) for name, (total, count) in sorted(sums.items())}


def _calls_of_all_ranks(
    model: BeniForConditionalGeneration, batches: Sequence[Batch], device: torch.device
) -> list[CallCounts]:
    """For each micro-batch the most calls that any rank makes; for the last one as many as any of the step.

    Gradients are summed over ranks in the backward pass of the last one, so it must reach whatever an earlier one has.
    """
    own = [model.calls_of(batch.layouts) for batch in batches]
    most = max_over_ranks([number for one in own for number in (one.encoder, one.stages)], device)
    encoder, stages = most[::2], most[1::2]
    encoder[-1], stages[-1] = max(encoder), max(stages)
    return [CallCounts(*numbers) for numbers in zip(encoder, stages, strict=True)]


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together; sharded where they are, see ``unsharded``."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def component_norms(model: nn.Module) -> dict[str, float]:
    """``grad_norm/<component>`` of each that has gradients; called by all ranks, before they are clipped."""
    norms = {}
    for name, component in model.named_children():
        gradients = [p.grad for p in component.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm/{name}"] = float(unsharded(nn.utils.get_total_norm(gradients)))
    return norms


def unsharded(norm: Tensor) -> Tensor:
    """A norm that is not sharded; called by all ranks."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def update(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float, norm: Tensor) -> None:
    """Clips gradients of that norm (0 = does not), updates at ``rate`` times each group's ``lr_scale``, clears them."""
    if clip > 0:
        nn.utils.clip_grads_with_norm_([p for p in model.parameters() if p.requires_grad], clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def clip_and_update(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> float:
    """``update`` with the norm that the gradients have, which it returns."""
    norm = gradient_norm(model)
    number = float(unsharded(norm))
    update(model, optimizer, rate, clip, norm)
    return number
