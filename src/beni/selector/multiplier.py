"""A Lagrange multiplier that is a parameter: it holds the mean over the rows of a step at a target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

SPEED = 2.0
"""A multiplier is so many times its parameter, so it changes by twice the learning rate in a step of Adam."""
LIGHT = 0.01
"""Of the multiplier's gradient, which an optimizer that norms gradients undoes: in the norm that is clipped the
multiplier then weighs next to nothing."""


def lagrangian(multiplier: Float[Tensor, "1"], excess: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Multiplier times excess. What the excess is made of goes down its gradient; the multiplier, whose gradient is
    turned round, goes up. What micro-batches and ranks add is a sum over rows, and so is the gradient: the multiplier
    is the same on each, and the optimizer's average of gradients is a moving average of the excess.
    """
    turned = multiplier.sum() - multiplier.detach().sum()
    return SPEED * multiplier.detach().sum() * excess - LIGHT * turned * excess.detach()
