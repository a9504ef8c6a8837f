"""Feed-forward layers, plain and gated (arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """``(..., d_in) -> (..., d_out)``: ``down(silu(gate(x)) * up(x))``, no biases."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim_in, dim_hidden, bias=False)
        self.up_proj = nn.Linear(dim_in, dim_hidden, bias=False)
        self.down_proj = nn.Linear(dim_hidden, dim_out, bias=False)

    def forward(self, x: Float[Tensor, "*a d_in"]) -> Float[Tensor, "*a d_out"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class FeedForward(nn.Module):
    """``(..., d_in) -> (..., d_out)``: ``fc2(act(fc1(x)))``."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, act: nn.Module, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(dim_hidden, dim_out, bias=bias)

    def forward(self, x: Float[Tensor, "*a d_in"]) -> Float[Tensor, "*a d_out"]:
        return self.fc2(self.act(self.fc1(x)))
