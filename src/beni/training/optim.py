"""AdamW (arXiv 1711.05101) with linear warm-up and cosine decay; the rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def build_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices, not on norms, biases and embeddings.

    Each component has groups of its own, whose ``lr_scale`` multiplies the rate of every step.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: list[dict[str, Any]] = []
    for name, component in model.named_children():
        decayed, plain = [], []
        for parameter in component.parameters():
            if parameter.requires_grad:
                matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
                (decayed if matrix else plain).append(parameter)
        scale = settings["lr_scale"][name]
        groups += [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for parameters, decay in ((decayed, settings["weight_decay"]), (plain, 0.0))
            if parameters
        ]
    sharded = any(isinstance(p, DTensor) for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups,
        lr=settings["lr"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        fused=not sharded,
    )


def learning_rate(step: int, steps: int, settings: Mapping[str, Any]) -> float:
    """Rate of optimizer step ``step`` (from 0) of ``steps``: linear to ``lr``, then cosine to ``min_lr``."""
    peak, floor = settings["lr"], settings["min_lr"]
    warmup = round(settings["warmup_ratio"] * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
