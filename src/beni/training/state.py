"""Trained parameters and optimizer moments as named tensors, and a whole model on rank 0, whatever the sharding.

Frozen weights are not in a checkpoint: they are pretrained, or drawn again from their named stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beni.errors import ResumeError
from beni.training.shards import SavedTensors
from beni.training.trainable import named_trainable

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``model/<name>`` and ``optimizer/<name>/<moment>`` tensors as training holds them; sharded ones are DTensors."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_trainable(model):
        state = optimizer.state.get(parameter)
        if state:  # without one no gradient ever reached it: it is as it was built
            tensors[f"model/{name}"] = parameter
            tensors |= {f"optimizer/{name}/{moment}": state[moment] for moment in MOMENTS}
    return tensors


def scatter(saved: SavedTensors, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts what ``named_tensors`` named in its place; each rank reads no more than its own part.

    Raises:
        ResumeError: when a tensor has no place in this model, or another shape there.
    """
    ours = dict(named_trainable(model))
    theirs = [key.removeprefix("model/") for key in saved if key.startswith("model/")]
    foreign = [n for n in sorted(theirs) if n not in ours or tuple(ours[n].shape) != saved.shape(f"model/{n}")]
    if foreign:
        raise ResumeError(f"the checkpoint is of another model: no such tensors here as {', '.join(foreign[:3])}")
    with torch.no_grad():
        for name in theirs:
            parameter = ours[name]
            parameter.copy_(saved.like(f"model/{name}", parameter))
            counter = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {
                moment: saved[key].to(counter, copy=True) if moment == "step" else saved.like(key, parameter)
                for moment in MOMENTS
                for key in (f"optimizer/{name}/{moment}",)
            }


def whole_on_main(model: nn.Module, main: bool) -> dict[str, Tensor]:
    """The model's state dict with every sharded tensor gathered, one after another, on the CPU of rank 0.

    Called by all ranks. On the others it is empty: none ever holds more than one whole tensor.
    """
    whole: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, DTensor) and id(tensor) not in whole:
            gathered = tensor.detach().full_tensor()
            whole[id(tensor)] = gathered.cpu() if main else gathered[:0]
        if main:
            state[name] = whole.get(id(tensor), tensor.detach())  # tied ones stay one tensor
    return state
