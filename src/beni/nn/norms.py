"""RMSNorm (arXiv 1910.07467) in the form of the Llama family: statistics in fp32, cast, then times the weight."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``(..., d) -> (..., d)``, scaled to unit root mean square and by a learned weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*a d"]) -> Float[Tensor, "*a d"]:
        # fp64 stays fp64: the reference tests compare there, where rounding cannot hide a bug
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def make_norm(kind: Literal["none", "layernorm", "rmsnorm"], dim: int, eps: float | None = None) -> nn.Module:
    """The norm of that name over ``dim`` channels; without ``eps`` each has its usual one (1e-5, 1e-6)."""
    if kind == "layernorm":
        return nn.LayerNorm(dim, 1e-5 if eps is None else eps)
    if kind == "rmsnorm":
        return RMSNorm(dim, 1e-6 if eps is None else eps)
    return nn.Identity()


def reset_norms(module: nn.Module) -> None:
    """Weights of one and biases of zero in every norm inside ``module``."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | RMSNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, nn.LayerNorm) and part.bias is not None:
            nn.init.zeros_(part.bias)
