"""Trained parameters and optimizer moments as plain named tensors, whole on every rank, whatever the sharding.

Frozen weights are not in a checkpoint: they are pretrained, or drawn again from their named stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from beni.errors import ResumeError
from beni.training.trainable import named_trainable

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def gather(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``model/<name>`` and ``optimizer/<name>/<moment>`` tensors on the CPU. Collective under sharding."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_trainable(model):
        state = optimizer.state.get(parameter)
        if state:  # without one no gradient ever reached it: it is as it was built
            tensors[f"model/{name}"] = _whole(parameter)
            tensors |= {f"optimizer/{name}/{moment}": _whole(state[moment]) for moment in MOMENTS}
    return tensors


def scatter(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of ``gather``, in place.

    Raises:
        ResumeError: when a tensor has no place in this model, or another shape there.
    """
    ours = dict(named_trainable(model))
    theirs = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    foreign = [n for n in sorted(theirs) if n not in ours or ours[n].shape != tensors[f"model/{n}"].shape]
    if foreign:
        raise ResumeError(f"the checkpoint is of another model: no such tensors here as {', '.join(foreign[:3])}")
    with torch.no_grad():
        for name in sorted(theirs):  # a set's order differs between processes
            parameter = ours[name]
            parameter.copy_(_like(tensors[f"model/{name}"], parameter))
            counter = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {
                moment: saved.to(counter, copy=True) if moment == "step" else _like(saved, parameter).clone()
                for moment in MOMENTS
                for saved in (tensors[f"optimizer/{name}/{moment}"],)
            }


def _whole(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True).contiguous()


def _like(whole: Tensor, parameter: Tensor) -> Tensor:
    whole = whole.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        # every rank holds the whole tensor and takes its own shard: nothing is sent
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return whole
