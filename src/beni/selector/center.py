"""The tokens nearest to the middle of their view: photographers put what matters there."""

from __future__ import annotations

from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, by_score, chosen, chosen_spec
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class CenterTokens(Stage):
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
        ranking = by_score(-(tokens.yx - 0.5).square().sum(-1), tokens)
        return chosen(tokens, ranking, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""
