"""RMSNorm (arXiv 1910.07467) in the form of the Llama family: statistics in fp32, cast, then times the weight."""

from __future__ import annotations

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
