"""VisionZip: the tokens with the largest attention, and a few that the others are merged into (arXiv 2412.04467).

Of the tokens that are not dominant, every so many-th is a target; each of the rest goes to the target whose key is most
like its own (cosine), and the mean of those that go to a target is added to it. The dominant ones keep their features.

Reference: the released ``visionzip/clip_encoder.py``; the tests derive the same tokens. There the CLS token is one of
the tokens that are kept; here it is one where the encoder keeps it (``vision.keep_cls``).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, at_places, chosen_spec, in_full_rows, kept, openness_of, taken_up, unit
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class VisionZip(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are left: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the tokens have among all, or ``compact`` them.
        contextual: share of the budget, at most 1.0, for tokens that others are merged into.
    """

    reads: frozenset[Reads] = frozenset({"attn", "keys"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        contextual: Annotated[float, AtLeast(0), AtMost(1)],
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions
        self.contextual = contextual

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made, which = in_full_rows(tokens, self.budget, self._zip)
        return kept(made, which, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _zip(self, rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
        if rows.attn is None or rows.keys is None:
            raise ValueError("selector=visionzip was given no attention and keys of the encoder")
        n = rows.attn.shape[1]
        count = min(int(self.contextual * k + 0.5), n - 1)
        order = torch.argsort(rows.attn, dim=1, descending=True, stable=True)
        if count == 0 or k == n:
            return rows, at_places(order[:, :k], n)
        rest = order[:, k - count :].sort(dim=1).values
        step = max(1, rest.shape[1] // count)
        targets = at_places(rest[:, ::step][:, :count], n)
        merged = at_places(rest, n) & ~targets
        keys = unit(rows.keys.detach())
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(~targets[:, None], -torch.inf)  # (g, n, a target)
        goes = torch.zeros_like(likeness).scatter(2, likeness.argmax(2, keepdim=True), 1.0) * merged[..., None]
        into = goes.transpose(1, 2)
        counted = into * openness_of(rows)[:, None]  # a token counts as far as its gate is open
        weights = counted / counted.sum(2, keepdim=True).clamp(min=torch.finfo(counted.dtype).tiny)
        made = taken_up(rows, weights, into)
        return made, at_places(order[:, : k - count], n) | targets
