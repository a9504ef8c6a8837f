"""Pieces of convolutional blocks on maps ``(i, d, rows, columns)``: norm over channels, squeeze-and-excitation."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """``(i, d, rows, columns) -> (i, d, rows, columns)``: the channels of each place are normalised."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Float[Tensor, "i d rows columns"]) -> Float[Tensor, "i d rows columns"]:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """``(i, d, rows, columns) -> (i, d, rows, columns)``: channels are scaled by what their mean says.

    Paper: arXiv 1709.01507. ``x * gate(fc2(act(fc1(mean of x))))``.

    Args:
        dim: channels.
        squeeze: channels between the two layers.
        act: between them.
        gate: after them, into [0, 1].
    """

    def __init__(self, dim: int, squeeze: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, squeeze), nn.Linear(squeeze, dim)
        self.act, self.gate = act, gate

    def forward(self, x: Float[Tensor, "i d rows columns"]) -> Float[Tensor, "i d rows columns"]:
        scale = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


def init_as_torch(module: nn.Module) -> None:
    """Draws the linear and convolutional layers and the norms inside ``module`` as torch does when it makes them."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.LayerNorm):
            part.reset_parameters()
