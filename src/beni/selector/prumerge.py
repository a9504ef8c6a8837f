"""PruMerge: the tokens with outstanding attention, each with its like added to it (arXiv 2403.15388).

How many are kept is asked of the picture (``adaptive``): those whose attention lies above the third quartile by more
than 1.5 times the distance between the quartiles. Each takes up the ``neighbours`` whose keys are most like its own
(cosine), kept ones among them, weighted by the encoder's attention to them; the weights are not normed. One token more
holds the sum of all that are not kept, weighted likewise, in the place of the one of them with the largest attention.

Reference: ``token_prune_merge_advanced`` of the released ``clip_encoder.py``; the tests derive the same tokens.
Deviations: there the outliers of a whole batch are counted and the kept tokens stand in the order of their attention;
the attention is that of the layer whose output is read, head by head, where the reference takes the last layer and all
heads as one.
``plus`` adds tokens at even distances to the kept ones, three for each of the outliers, as its second version does.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.errors import ConfigError
from beni.nn.choose import Budget, Positions, chosen_spec, in_full_rows, kept, openness_of, taken_up, unit
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PruMerge(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are left, the one for all others among them: a whole number, a share (a float, at
            most 1.0), or ``adaptive`` to the picture.
        positions: ``preserve`` the position ids that the tokens have among all, or ``compact`` them.
        neighbours: tokens that each kept one takes up.
        plus: keep tokens at even distances too; only with ``keep: adaptive``.

    Raises:
        ConfigError: ``plus`` with a budget.
    """

    reads: frozenset[Reads] = frozenset({"attn", "keys"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)] | Literal["adaptive"],
        positions: Literal["preserve", "compact"],
        neighbours: Annotated[int, AtLeast(0)],
        plus: bool,
    ) -> None:
        super().__init__()
        self.budget = None if keep == "adaptive" else Budget(keep)
        self.positions: Positions = positions
        self.neighbours, self.plus = neighbours, plus
        if plus and self.budget is not None:
            raise ConfigError(
                f"selector.plus=true keeps more tokens than selector.keep={keep} allows\n"
                "  fix: set selector.keep=adaptive, or selector.plus=false"
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made, which = in_full_rows(tokens, self.budget, self._merge)
        return kept(made, which, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _merge(self, rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
        if rows.attn is None or rows.keys is None:
            raise ValueError("selector=prumerge was given no attention and keys of the encoder")
        attn, n = rows.attn, rows.attn.shape[1]
        rank = torch.argsort(torch.argsort(attn, dim=1, descending=True, stable=True), dim=1)
        alone = k if k in (1, n) else k - 1  # one of the budget is for all others
        which = self._outstanding(attn, rank) if self.budget is None else rank < alone
        keys = unit(rows.keys.detach())
        itself = torch.eye(n, device=keys.device)
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(itself.bool(), -torch.inf)
        near = likeness.topk(min(self.neighbours, n - 1), dim=2).indices
        taken = torch.zeros_like(likeness).scatter(2, near, 1.0) * which[..., None]
        # the best of the others becomes their sum
        others = self._summed(which, k)
        last = others & (rank == rank.masked_fill(~others, n).amin(1, keepdim=True))
        summed = (last[..., None] & others[:, None]).to(attn.dtype)
        weights = (taken + summed) * (attn * openness_of(rows))[:, None] - itself * last[..., None]
        return taken_up(rows, weights, summed * (1 - itself)), which | last

    def _outstanding(self, attn: Float[Tensor, "g n"], rank: Int[Tensor, "g n"]) -> Bool[Tensor, "g n"]:
        """True at outliers, at least at one token a row, and at those at even distances where they are wanted."""
        low, high = (attn.float().quantile(q, dim=1, keepdim=True) for q in (0.25, 0.75))
        which = (attn > high + 1.5 * (high - low)) | (rank == 0)
        if not self.plus:
            return which
        n = attn.shape[1]
        step = (n // which.sum(1, keepdim=True) // 3).clamp(min=1)
        return which | (torch.arange(n, device=attn.device) % step == 0)

    def _summed(self, which: Bool[Tensor, "g n"], k: int) -> Bool[Tensor, "g n"]:
        """True at the tokens whose sum is kept: all that are not, but where there is no place for one token more."""
        return torch.zeros_like(which) if self.budget is not None and k == 1 else ~which
