"""Every so many-th token in reading order: token floor((j + 1/2) n / k) of n for j = 0 ... k - 1."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, chosen, chosen_spec
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class UniformTokens(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        ranking = spread(tokens.mask, self.budget)
        return chosen(tokens, ranking, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""


def spread(mask: Bool[Tensor, "i n"], budget: Budget) -> Int[Tensor, "i n"]:
    """Places of each row, those of real tokens at even distances first, as many as its budget keeps."""
    real = mask.sum(1, keepdim=True)
    wanted = budget.each(real[:, 0])[:, None].clamp(min=1)
    order = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    numbers = torch.div((2 * order + 1) * real, 2 * wanted, rounding_mode="floor")  # of the j-th among the real ones
    reading = torch.argsort((~mask).long(), dim=1, stable=True)
    return reading.gather(1, numbers.clamp(max=mask.shape[1] - 1))
