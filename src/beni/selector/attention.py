"""The tokens that the encoder attends to most, in the last layer whose output is read: from its CLS token where it has
one (as FasterVLM, arXiv 2412.01818, does), else the mean over all tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, by_score, chosen, chosen_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class AttendedTokens(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
    """

    reads: frozenset[Reads] = frozenset({"attn"})

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
        if tokens.attn is None:
            raise ValueError("selector=attention was given no attention of the encoder")
        ranking = by_score(tokens.attn, tokens)
        return chosen(tokens, ranking, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""
