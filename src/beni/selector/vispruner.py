"""VisPruner: tokens that the encoder attends to, and of the others those that differ most (arXiv 2412.01818).

A share of the budget goes to the tokens with the largest attention. Of the others duplicates are removed, at most eight
at a time: they are split into two halves in turn, and those of the first half that are most like one of the second go.

Reference: ``encode_images`` of the released ``llava_arch.py``; the tests derive the same choice.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, at_places, chosen_spec, in_full_rows, kept, unit
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

AT_ONCE = 8
"""Duplicates that are removed at a time."""


class VisPruner(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
        important: share of the budget, at most 1.0, that goes to the tokens with the largest attention.
    """

    reads: frozenset[Reads] = frozenset({"attn"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        important: Annotated[float, AtLeast(0), AtMost(1)],
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions
        self.important = important

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made, which = in_full_rows(tokens, self.budget, self._important_and_distinct)
        return kept(made, which, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _important_and_distinct(self, rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
        if rows.attn is None:
            raise ValueError("selector=vispruner was given no attention of the encoder")
        order = torch.argsort(rows.attn, dim=1, descending=True, stable=True)
        important = int(k * self.important)
        rest = without_duplicates(unit(rows.x.detach()), order[:, important:], k - important)
        return rows, at_places(torch.cat([order[:, :important], rest], 1), order.shape[1])


def without_duplicates(directions: Float[Tensor, "g n d"], places: Int[Tensor, "g m"], k: int) -> Int[Tensor, "g k"]:
    """Those ``k`` of the places that are left when the ones most like another have been taken out."""
    if k == 0:
        return places[:, :0]
    rows = torch.arange(len(places), device=places.device)[:, None]
    while (most := min(AT_ONCE, places.shape[1] - k, places.shape[1] // 2)) > 0:
        vectors = directions[rows, places]
        # with an odd number the first half has one more
        alike = (vectors[:, ::2] @ vectors[:, 1::2].transpose(1, 2)).amax(2)
        distinct = torch.argsort(alike, dim=1, descending=True, stable=True)[:, most:]
        places = torch.cat([places[:, ::2].gather(1, distinct), places[:, 1::2]], 1)
    return places
