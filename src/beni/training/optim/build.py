"""The optimizers, over groups of parameters that differ in rate and weight decay.

- AdamW (arXiv 1711.05101), Muon (arXiv 2502.16982) and Adafactor (arXiv 1804.04235) are torch's.
- Lion (arXiv 2302.06675) is lion-pytorch's, AdamW with 8-bit moments (arXiv 2110.02861) bitsandbytes'.
- Muon and the 8-bit AdamW take the matrices only; plain AdamW takes the rest, and both look like one
  (``CompositeOptimizer``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D

from beni.model.modeling import BeniForConditionalGeneration
from beni.training.optim.layers import layer_factors

Groups = Sequence[dict[str, Any]]

MULTIPLYING = (nn.Linear, Conv1D, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""Modules that multiply what comes in by their weight."""

ADAFACTOR_EPS = 1e-15
"""Its square, 1e-30, is the paper's. torch would take the machine epsilon, a floor under the mean square as well: a
tensor whose gradients are below 3e-4 would get updates of full size, however small they have become."""


class CompositeOptimizer(Optimizer):
    """Several optimizers, each over parameters of its own, as one: one list of groups, one state, one step."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()


def build_optimizer(model: BeniForConditionalGeneration, settings: Mapping[str, Any]) -> Optimizer:
    """Over the trainable parameters; weight decay on what ``multiplied`` names and on nothing else.

    Each group has an ``lr_scale``, of its component and layer, which multiplies the rate of every step.
    """
    groups = _groups(model, settings)
    match settings["optimizer"]:
        case "adamw":
            return _adamw(groups, settings)
        case "adamw_8bit":
            decayed = {id(p) for group in groups if group["matrices"] for p in group["params"]}
            return _divided(groups, decayed, _adamw_8bit, settings)
        case "muon":
            return _divided(groups, hidden_matrices(model), _muon, settings)
        case "lion":
            return _lion(groups, settings)
        case "adafactor":
            return _adafactor(groups, settings)
        case unknown:
            raise ValueError(f"no optimizer {unknown}")  # config/check.py has refused it


def multiplied(model: BeniForConditionalGeneration) -> set[int]:
    """``id`` of each tensor that inputs are multiplied with: the weights of linear layers (adapters among them),
    convolutions and torch's attention, and in the llm's layers also routers and stacks of experts, which are bare
    tensors.

    What is looked up, added or put beside inputs is none of them: norms, biases, embeddings, whoever keeps them and in
    whatever shape (tables of positions, relative ones too; class, mask and register tokens), latents and queries.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [
        parameter
        for module in model.modules()
        if isinstance(module, MULTIPLYING)
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("weight")
    ]
    for layer in model.llm.layers():
        weights += [parameter for name, parameter in layer.named_parameters() if not name.endswith("bias")]
    return {id(parameter) for parameter in weights if parameter.ndim >= 2} - looked_up


def hidden_matrices(model: BeniForConditionalGeneration) -> set[int]:
    """``id`` of each matrix that maps hidden states to hidden states: of what is ``multiplied``, all but the head,
    convolutions and stacks of experts.

    A matrix of one row or column is a vector and has nothing to orthogonalise.
    """
    chosen, head = multiplied(model), model.llm.output_layer()
    matrices = {id(p) for p in model.parameters() if id(p) in chosen and p.ndim == 2 and min(p.shape) > 1}
    return matrices - {id(p) for p in (() if head is None else head.parameters())}


def _groups(model: BeniForConditionalGeneration, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameter groups of what trains, by component, by whether it decays, and by layer where layers differ."""
    matrices = multiplied(model)
    groups: list[dict[str, Any]] = []
    for name, component in model.named_children():
        factors = layer_factors(component, settings["layer_decay"].get(name, 1.0))
        alike: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in component.parameters():
            if parameter.requires_grad:
                alike.setdefault((id(parameter) in matrices, factors.get(id(parameter), 1.0)), []).append(parameter)
        groups += [
            {
                "params": parameters,
                "weight_decay": settings["weight_decay"] if matrix else 0.0,
                "lr_scale": settings["lr_scale"][name] * factor,
                "matrices": matrix,
            }
            for (matrix, factor), parameters in alike.items()
        ]
    return groups


def _divided(
    groups: Groups,
    chosen: Collection[int],
    make: Callable[[Groups, Mapping[str, Any]], Optimizer],
    settings: Mapping[str, Any],
) -> Optimizer:
    """``make`` over the ``chosen`` parameters, AdamW over the others."""

    def those(wanted: bool) -> Groups:
        kept = [{**g, "params": [p for p in g["params"] if (id(p) in chosen) == wanted]} for g in groups]
        return [group for group in kept if group["params"]]

    parts = ((make, those(True)), (_adamw, those(False)))
    return CompositeOptimizer(*(build(some, settings) for build, some in parts if some))


def _adamw(groups: Groups, settings: Mapping[str, Any]) -> Optimizer:
    sharded = any(isinstance(p, DTensor) for group in groups for p in group["params"])
    first, second = map(float, settings["betas"])
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(first, second), eps=settings["eps"], fused=not sharded)


def _adamw_8bit(groups: Groups, settings: Mapping[str, Any]) -> Optimizer:
    # torchao's compiles a kernel for each shape (24 s for two on a CPU) or, uncompiled, takes 0.1 s a tensor
    library = import_module("bitsandbytes.optim")
    return library.AdamW8bit(groups, lr=settings["lr"], betas=tuple(map(float, settings["betas"])), eps=settings["eps"])


def _muon(groups: Groups, settings: Mapping[str, Any]) -> Optimizer:
    optimizer = ShardedMuon(
        groups,
        lr=settings["lr"],
        momentum=settings["momentum"],
        ns_steps=settings["ns_steps"],
        adjust_lr_fn="match_rms_adamw",  # an update has AdamW's size, so that both take one rate
    )
    optimizer.register_step_pre_hook(_whole_gradients)
    return optimizer


def _whole_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Every rank gets the whole gradient of a sharded matrix, and so keeps the whole moment.

    Newton-Schulz needs the whole matrix. Left to DTensor it takes several collectives an iteration (measured: 10 to 60
    times slower on two processes) and rounds otherwise than one process does.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter.grad, DTensor):
                whole = [Replicate()] * parameter.grad.device_mesh.ndim
                parameter.grad = parameter.grad.redistribute(placements=whole)


class ShardedMuon(torch.optim.Muon):
    """torch's, also of matrices with fewer rows than there are shards, such as those of LoRA: DTensor (torch 2.13) does
    not add a whole update to one of which some rank has nothing.

    Whole matrices stand in for them during a step, so the arithmetic is that of a single process.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        stand_ins: list[tuple[list[Any], int, DTensor, nn.Parameter]] = []
        for group in self.param_groups:
            parameters = group["params"]
            for place, parameter in enumerate(parameters):
                if parameter.grad is not None and _is_thin(parameter):
                    whole = nn.Parameter(parameter.full_tensor())
                    whole.grad = parameter.grad.full_tensor()
                    self._hand_over(parameter, whole)
                    parameters[place] = whole
                    stand_ins.append((parameters, place, parameter, whole))
        try:
            super().step()
        finally:
            for parameters, place, parameter, whole in stand_ins:
                parameters[place] = parameter
                self._hand_over(whole, parameter)
                mesh, placements = parameter.device_mesh, parameter.placements
                own = distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None)
                parameter.to_local().copy_(own.to_local())

    def _hand_over(self, one: Any, other: Any) -> None:
        if one in self.state:
            self.state[other] = self.state.pop(one)


def _is_thin(parameter: Any) -> bool:
    """Whether a rank may have nothing of it."""
    if not isinstance(parameter, DTensor):
        return False
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return any(isinstance(placed, Shard) and parameter.shape[placed.dim] < size for placed, size in sizes)


def _lion(groups: Groups, settings: Mapping[str, Any]) -> Optimizer:
    return import_module("lion_pytorch").Lion(groups, lr=settings["lr"], betas=tuple(map(float, settings["betas"])))


def _adafactor(groups: Groups, settings: Mapping[str, Any]) -> Optimizer:
    return torch.optim.Adafactor(
        groups,
        lr=settings["lr"],
        beta2_decay=settings["beta2_decay"],
        eps=(ADAFACTOR_EPS, settings["min_scale"]),
        d=settings["clip_threshold"],
    )
