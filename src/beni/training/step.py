"""One optimizer step: every micro-batch forward and backward under one normalisation, then clip and update.

The summed token loss of each micro-batch is divided by the label tokens of *all* micro-batches and ranks, so 1x8, 2x4
and 8x1 micro-batching give one gradient, and a short answer weighs as much a token as a long one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from beni.distributed.collectives import agree, max_over_ranks, raise_alike, sum_gradients, sum_over_ranks
from beni.distributed.fsdp import meet_all
from beni.measure.goodput import Goodput
from beni.model.inputs import Calls, Loss, StepInputs
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast
from beni.types import Batch


def caught(drawing: Iterable[list[Batch]]) -> Iterator[list[Batch] | Exception]:
    """What is drawn; where that fails the error, and no more."""
    try:
        yield from drawing
    except Exception as error:
        yield error


def together(
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


def forward_backward(
    model: BeniForConditionalGeneration,
    batches: Sequence[Batch],
    step: int,
    device: torch.device,
    precision: str,
    how: Loss = "full",
    clock: Goodput | None = None,
) -> tuple[float, int]:
    """Gradients of one step, summed over micro-batches and ranks.

    Args:
        how: the loss is computed (model/loss.py).
        clock: is told of copies and collectives.

    Returns:
        The mean loss over all label tokens of the step, and how many there were; the same on every rank.
    """
    clock = clock or Goodput(device)
    with clock.inside("communication"):
        count = int(sum_over_ranks(sum(batch.num_labels for batch in batches), device))
    total = torch.zeros((), device=device)
    # under sharding every rank must gather the same weights in the same order, whatever images it has
    sharded = isinstance(model, FSDPModule)
    calls = _calls_of_all_ranks(model, batches, device) if sharded else [None] * len(batches)
    if sharded and len(batches) > 1:
        meet_all(model)
    for i, batch in enumerate(batches):
        if sharded:
            model.set_requires_gradient_sync(i == len(batches) - 1)
        with clock.inside("copy"):
            there = batch.to(device)
        with autocast(device, precision):
            told = StepInputs(num_items=count, step=step, calls=calls[i], loss=how)
            loss = model(**there.model_inputs(), how=told).loss
        if loss.requires_grad:  # a text alone has nothing to tell a connector when all else is frozen
            loss.backward()
        total += loss.detach()
    with clock.inside("communication"):
        sum_gradients((p for p in model.parameters() if p.requires_grad), device)
    value = float(total)
    with clock.inside("communication"):
        mean = sum_over_ranks(value, device)
    return mean, count


def _calls_of_all_ranks(
    model: BeniForConditionalGeneration, batches: Sequence[Batch], device: torch.device
) -> list[Calls]:
    """For each micro-batch the most calls that any rank makes; for the last one as many as any of the step.

    Gradients are summed over ranks in the backward pass of the last one, so it must reach whatever an earlier one has.
    """
    own = [model.calls_of(batch.layouts) for batch in batches]
    most = max_over_ranks([number for one in own for number in (one.encoder, one.stages)], device)
    encoder, stages = most[::2], most[1::2]
    encoder[-1], stages[-1] = max(encoder), max(stages)
    return [Calls(*numbers) for numbers in zip(encoder, stages, strict=True)]


def gradient_norm(model: nn.Module) -> Tensor:
    """Of all gradients together; sharded where they are, see ``whole``."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def component_norms(model: nn.Module) -> dict[str, float]:
    """``grad_norm/<component>`` of each that has gradients; called by all ranks, before they are clipped."""
    norms = {}
    for name, component in model.named_children():
        gradients = [p.grad for p in component.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm/{name}"] = whole(nn.utils.get_total_norm(gradients))
    return norms


def whole(norm: Tensor) -> float:
    """A norm as a number; called by all ranks."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


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
    number = whole(norm)
    update(model, optimizer, rate, clip, norm)
    return number
