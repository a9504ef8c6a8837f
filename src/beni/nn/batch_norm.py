"""BatchNorm under beni's rule that it always uses stored statistics (``training/trainable.py``).

Stored statistics of an untrained network are a mean of 0 and a variance of 1, which its features do not have: in a deep
one they vanish (MobileNetV2: 1e-26 after 17 blocks, measured) and no gradient comes back. ``settle_statistics`` stores
those of noise instead, once, when the weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGES = 8
"""Enough for a variance where the deepest maps are of one cell."""


def flattened(features: Float[Tensor, "i d rows columns"]) -> Float[Tensor, "i n d"]:
    """A network's map as tokens in reading order.

    What comes back as gradient is made contiguous: torch 2.13 computes silently wrong gradients on a CPU in a BatchNorm
    that uses stored statistics when the batch is one picture and the gradient's strides are those of a transposed map,
    as they would be here (weight, bias and input; off by more than their size).
    """
    if features.requires_grad:
        features.register_hook(Tensor.contiguous)
    return features.flatten(2).transpose(1, 2)


def batch_norms(model: nn.Module) -> list[Any]:
    """Every BatchNorm of ``model``, of any number of dimensions."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def settle_statistics(model: nn.Module, run: Callable[[Tensor], Any], size: tuple[int, int]) -> None:
    """Store in every BatchNorm of ``model`` the statistics of standard normal pixels, drawn from the global generator.

    Nothing happens, and nothing is drawn, where there is none, or no weights yet (the meta device).

    Args:
        run: pixels ``(i, 3, height, width)`` through ``model``.
        size: (height, width) in pixels.
    """
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    if not norms or any(p.is_meta for p in model.parameters()):
        return
    device = next(model.parameters()).device
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        if norm.affine and norm.weight.std() > 0:  # transformers draws EfficientNet's scales from N(0, 0.02): dead
            norm.reset_parameters()
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    run(torch.randn(IMAGES, 3, *size, device=device))
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)
