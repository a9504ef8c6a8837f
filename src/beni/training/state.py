"""What a checkpoint holds, as named tensors: trained weights, their average, and whatever the optimizer keeps for them.

``named_tensors`` names the live tensors and leaves them sharded as they are; ``whole`` makes them whole copies on the
CPU, the same at every number of processes. Frozen weights are not in a checkpoint: they are pretrained, or drawn again
from their named stream. Nor are those that wait for ``train.thaw``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from beni.errors import ResumeError
from beni.training.ema import Average
from beni.training.trainable import named_trainable


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Tensor]:
    """``model/<name>``, ``average/<name>`` and ``optimizer/<name>/<key>``, of every parameter that has been updated.

    Tensors are the live ones; a plain number of an optimizer's state is a tensor made of it.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_trainable(model):
        state = optimizer.state.get(parameter)
        if state:  # without one no gradient ever reached it: it is as it was built
            tensors[f"model/{name}"] = parameter.detach()
            if name in average.tensors:
                tensors[f"average/{name}"] = average.tensors[name]
            tensors |= {
                f"optimizer/{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for key, value in state.items()
            }
    return tensors


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU. Collective under sharding."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }


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


def scatter(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> None:
    """Takes on what ``whole(named_tensors(...))`` gave, in place.

    Raises:
        ResumeError: when a tensor has no place in this model or optimizer, or another shape there.
    """
    ours = dict(named_trainable(model))
    theirs = [key.removeprefix("model/") for key in sorted(tensors) if key.startswith("model/")]
    _refuse("model", [n for n in theirs if n not in ours or ours[n].shape != tensors[f"model/{n}"].shape])
    prepare(theirs, model, optimizer)
    live = named_tensors(model, optimizer, average)
    differs = [n for n in live.keys() & tensors.keys() if live[n].shape != tensors[n].shape]
    _refuse("optimizer", sorted(live.keys() ^ tensors.keys()) + sorted(differs))
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(_like(tensors[name], tensor))
    for name in theirs:
        state = optimizer.state[ours[name]]
        plain = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        state.update({k: type(value)(tensors[f"optimizer/{name}/{k}"].item()) for k, value in plain.items()})


def _refuse(kind: str, names: list[str]) -> None:
    if names:
        raise ResumeError(f"the checkpoint is of another {kind}: no such tensors here as {', '.join(names[:3])}")


def _like(saved: Tensor, live: Tensor) -> Tensor:
    saved = saved.to(live.device, live.dtype)
    if isinstance(live, DTensor):
        # every rank holds the whole tensor and takes its own shard: nothing is sent
        return distribute_tensor(saved, live.device_mesh, live.placements, src_data_rank=None)
    return saved
