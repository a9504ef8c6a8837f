"""What a checkpoint holds, as named tensors: trained weights, their average, and whatever the optimizer keeps for them.

Sharded ones stay so: each rank writes and reads its own part (shards.py). Frozen weights are not in a
checkpoint: they are pretrained, or drawn again from their named stream. Nor are those that wait for ``train.thaw``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beni.distributed.fsdp import reshard
from beni.errors import ResumeError
from beni.training.checkpoint.shards import SavedTensors
from beni.training.ema import Average, local
from beni.training.trainable import named_trainable


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Tensor]:
    """``model/<name>``, ``average/<name>`` and ``optimizer/<name>/<key>``, of every parameter that has been updated.

    Tensors are the live ones; a plain number of an optimizer's state is a tensor made of it.
    """
    reshard(model)
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_trainable(model):
        state = optimizer.state.get(parameter)
        if state:  # without one no gradient ever reached it: it is as it was built, see ``Initial``
            tensors[f"model/{name}"] = parameter.detach()
            if name in average.tensors:
                tensors[f"average/{name}"] = average.tensors[name]
            tensors |= {
                f"optimizer/{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for key, value in state.items()
            }
    return tensors


class Initial:
    """What trains, as it was built, a copy on the CPU: checkpoints leave out what has not been updated yet.

    Args:
        model: before its first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights = [parameter for _, parameter in named_trainable(model)]
        self._values = [part.detach().to("cpu", copy=True) for part in local(self._weights)]

    @torch.no_grad()
    def restore(self, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Everything as a new process would have it before it reads a checkpoint."""
        reshard(self._model)
        for weight, value in zip(local(self._weights), self._values, strict=True):
            weight.copy_(value)
        average.begin()
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()


def prepare(names: Iterable[str], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gives the parameters of these names an optimizer state of the right kind, shape, device and sharding.

    Only the optimizer knows what that is, so it takes a step with a gradient of 0 at a rate of 0.
    """
    ours = dict(named_trainable(model))
    for name in names:
        ours[name].grad = torch.zeros_like(ours[name])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def scatter(saved: SavedTensors, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> None:
    """Puts what ``named_tensors`` named in its place; each rank reads no more than its own part.

    Raises:
        ResumeError: when a tensor has no place in this model or optimizer, or another shape there.
    """
    ours = dict(named_trainable(model))
    theirs = [key.removeprefix("model/") for key in sorted(saved) if key.startswith("model/")]
    _refuse("model", [n for n in theirs if n not in ours or tuple(ours[n].shape) != saved.shape(f"model/{n}")])
    prepare(theirs, model, optimizer)
    live = named_tensors(model, optimizer, average)
    differs = [n for n in live.keys() & saved.keys() if tuple(live[n].shape) != saved.shape(n)]
    _refuse("optimizer", sorted(live.keys() ^ saved.keys()) + sorted(differs))
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved.like(name, tensor))
    for name in theirs:
        state = optimizer.state[ours[name]]
        plain = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        state.update({k: type(value)(saved[f"optimizer/{name}/{k}"].item()) for k, value in plain.items()})


def _refuse(kind: str, names: list[str]) -> None:
    if names:
        raise ResumeError(f"the checkpoint is of another {kind}: no such tensors here as {', '.join(names[:3])}")


def whole_on_main(model: nn.Module, main: bool) -> dict[str, Tensor]:
    """The model's state dict with every sharded tensor gathered, one after another, on the CPU of rank 0.

    Called by all ranks. On the others it is empty: none ever holds more than one whole tensor.
    """
    whole: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, DTensor) and id(tensor) not in whole:
            gathered = cast(DTensor, tensor.detach()).full_tensor()
            whole[id(tensor)] = gathered.cpu() if main else gathered[:0]
        if main:
            state[name] = whole.get(id(tensor), tensor.detach())  # tied ones stay one tensor
    return state
