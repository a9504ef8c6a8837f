"""DivPrune: tokens that differ most from each other (arXiv 2503.02175).

A solution of the max-min diversity problem under the distance 1 - cosine: first the token whose nearest other one is
farthest away, then, again and again, the token that is farthest from its nearest chosen one.

Reference: ``DivPrune`` of the released ``llava_arch.py``; the tests derive the same choice token by token.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, at_places, chosen_spec, in_full_rows, kept, unit
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class DivPrune(Stage):
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
        made, which = in_full_rows(tokens, self.budget, _most_distinct)
        return kept(made, which, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""


def _most_distinct(rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
    return rows, at_places(most_distinct(unit(rows.x.detach()), k), rows.x.shape[1])


def most_distinct(directions: Float[Tensor, "g n d"], k: int) -> Int[Tensor, "g k"]:
    """Places of ``k`` unit vectors, each as far as can be from the nearest of those before it."""
    distance = 1 - directions @ directions.transpose(1, 2)
    rows = torch.arange(len(distance), device=distance.device)
    if distance.shape[1] == 1:
        return torch.zeros(len(distance), 1, dtype=torch.long, device=distance.device)
    nearest_other = distance.topk(2, dim=1, largest=False).values[:, 1]  # the nearest is the token itself
    places = [nearest_other.argmax(1)]
    nearest = distance[rows, places[0]]
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    for _ in range(1, k):
        taken = taken.scatter(1, places[-1][:, None], True)
        places.append(nearest.masked_fill(taken, -torch.inf).argmax(1))
        nearest = torch.minimum(nearest, distance[rows, places[-1]])
    return torch.stack(places, 1)
