"""Token merging: the most similar pairs of tokens become one, until a budget is met (ToMe, arXiv 2210.09461).

Bipartite soft matching: the tokens of a row are dealt to two sets in turn; each of the first set finds the most similar
one of the second (cosine), and the most similar pairs are merged, as an average weighted by the patches they stand for.
A round takes out half of the tokens at most, and there are as many as the budget asks for. Here they are merged behind
the encoder; the paper merges some in each of its layers.

Reference: ``bipartite_soft_matching`` of the released ``tome/merge.py``; the tests derive the same tokens. Deviation:
there the tokens of the first set come first, in the order of their similarity; here all stay in reading order between
rounds. ``proportional`` lets a token that stands for k patches weigh as k tokens in what attends to it (the paper's
proportional attention): its log-gate is log(k).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.choose import Budget, Positions, chosen_spec, in_full_rows, kept, openness_of, unit, with_gates
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class TokenMerging(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are left: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the tokens have among all, or ``compact`` them.
        metric: what is compared: the encoder's ``keys``, as in the paper, or ``features``.
        proportional: a token weighs as much as the patches it stands for (``log_gate``).
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        metric: Literal["keys", "features"],
        proportional: bool,
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions
        self.proportional = proportional
        self.reads = frozenset[Reads]({"keys"} if metric == "keys" else ())

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        left = chosen_spec(tokens, self.budget, self.positions)
        return replace(left, gated=True) if self.proportional else left

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made, which = in_full_rows(tokens, self.budget, self._merge)
        left = kept(made, which, self.budget, self.positions)
        # padding may stand for no patch
        return with_gates(left, left.size.clamp(min=1).log()) if self.proportional else left

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _merge(self, rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
        alive = torch.arange(rows.mask.shape[1], device=rows.mask.device).expand_as(rows.mask)
        made = rows
        while (most := min(alive.shape[1] - k, alive.shape[1] // 2)) > 0:
            first, second = alive[:, ::2], alive[:, 1::2]
            metric = made.keys if "keys" in self.reads else made.x
            if metric is None:
                raise ValueError("selector=tome was given no keys of the encoder")
            source, target, rest = pairs(metric, first, second, most)
            made = merged(made, source, target)
            alive = torch.cat([rest, second], 1).sort(dim=1).values
        return made, torch.zeros_like(rows.mask).scatter(1, alive, True)


def pairs(
    metric: Float[Tensor, "g n d"], first: Int[Tensor, "g a"], second: Int[Tensor, "g b"], most: int
) -> tuple[Int[Tensor, "g m"], Int[Tensor, "g m"], Int[Tensor, "g r"]]:
    """The ``most`` similar pairs: places of the first set, those of the second that each goes to, and the rest of the
    first.
    """
    directions = unit(metric.detach())
    where = torch.arange(len(first), device=first.device)[:, None]
    likeness, nearest = (directions[where, first] @ directions[where, second].transpose(1, 2)).max(2)
    order = torch.argsort(likeness, dim=1, descending=True, stable=True)
    source, rest = order[:, :most], order[:, most:]
    return first.gather(1, source), second.gather(1, nearest.gather(1, source)), first.gather(1, rest)


def merged(rows: VisualTokens, source: Int[Tensor, "g m"], target: Int[Tensor, "g m"]) -> VisualTokens:
    """The rows with every field at the targets averaged with those of their sources, weighted by the patches that they
    stand for and by how far their gates are open. The gate of a target is then as open as they are on average.
    """
    size = rows.size.scatter_add(1, target, rows.size.gather(1, source))

    def averaged(field: Tensor, weight: Float[Tensor, "g n"]) -> Tensor:
        wide = field if field.ndim == 3 else field[..., None]
        factor = weight.to(wide.dtype)[..., None]
        at = target[..., None].expand(-1, -1, wide.shape[2])
        moved = (wide * factor).gather(1, source[..., None].expand_as(at))
        total = factor.scatter_add(1, target[..., None], factor.gather(1, source[..., None]))
        sums = (wide * factor).scatter_add(1, at, moved) / total.clamp(min=torch.finfo(wide.dtype).tiny)
        return sums.view_as(field)

    open_ = openness_of(rows)
    weight = rows.size * open_
    made = rows.map(lambda field: averaged(field, weight) if field.is_floating_point() else field)
    gates = None if rows.log_gate is None else averaged(open_, rows.size).log()
    return replace(made, size=size, log_gate=gates)
