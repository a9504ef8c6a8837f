"""Random tokens: the baseline that every way of choosing tokens must beat, and often does not (UniPruneBench).

While training, each sample is shown other tokens in every step; in evaluation a sample always has the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, by_score, chosen, chosen_spec
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class RandomTokens(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
        seed: draws other tokens for the same samples, so that two arms of a study may differ in nothing else.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        seed: Annotated[int, AtLeast(0)],
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions
        self.seed = seed

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        drawn = context if self.training else replace(context, step=0)
        ranking = by_score(drawn.noise(f"order {self.seed}", tokens.mask), tokens)
        return chosen(tokens, ranking, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""
