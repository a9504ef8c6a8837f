"""DART (arXiv 2502.11494): of the image tokens, those that are most like a few pivots leave, as duplicates of them.

Reference: ``get_retained_image_token`` of the release, as llmc has it (ModelTC/llmc). No attention weights are needed:
pivots are the tokens with the largest keys, and hidden states are compared. Deviations: exactly the share ``keep``
stays, pivots among them (the release keeps the same number for each pivot, rounded down, and the pivots besides);
hidden states are compared as they are, not behind the llm's last norm, whose place differs from family to family; image
pivots come before text pivots, in the order of their norms.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.pruner.base import Pruner, cuts_before
from beni.types import Candidates, Cut, Pruning


class Dart(Pruner):
    """Keeps pivots and the image tokens that are least similar to each of them.

    Args:
        layer: number of the decoder layer before which tokens leave, from 1 on.
        keep: share of a sample's image tokens that stays.
        image_pivots: pivots among the image tokens.
        text_pivots: pivots among the text between the first image and the first answer.
        positions: ``preserve``: those that stay keep their positions; ``compact``: they move up.
    """

    def __init__(
        self,
        *,
        layer: Annotated[int, AtLeast(1)],
        keep: Annotated[float, Above(0), AtMost(1)],
        image_pivots: Annotated[int, AtLeast(1)],
        text_pivots: Annotated[int, AtLeast(0)],
        positions: Literal["preserve", "compact"],
    ) -> None:
        self.layer, self.keep, self.positions = layer, keep, positions
        self.image_pivots, self.text_pivots = image_pivots, text_pivots

    @property
    def prunes(self) -> bool:
        return self.keep < 1

    def plan(self, depth: int) -> Pruning:
        score = partial(distinct, image_pivots=self.image_pivots, text_pivots=self.text_pivots)
        cut = partial(Cut, score=score, sees="before")
        return Pruning(cuts_before([self.layer], [self.keep], depth, cut), compact=self.positions == "compact")


def distinct(candidates: Candidates, image_pivots: int, text_pivots: int) -> Float[Tensor, "s l"]:
    """2 at pivots, 1 at the tokens that are least similar to each of them, as many as are to stay, 0 at the others."""
    image, keep = candidates.image, candidates.keep
    text = candidates.asked & ~image & (image.cumsum(1) > 0)
    size = candidates.attention.keys().float().abs().sum((1, 3))
    pivots, there = largest(size, image, image_pivots)
    there = there & (torch.arange(there.shape[1], device=keep.device) < keep[:, None])
    words, spoken = largest(size, text, text_pivots)
    score = torch.zeros_like(size).scatter_add(1, pivots, 2.0 * there)
    unit = F.normalize(candidates.hidden.float(), dim=-1)
    all_pivots, asked = torch.cat([pivots, words], 1), torch.cat([there, spoken], 1)
    chosen = unit.gather(1, all_pivots[..., None].expand(-1, -1, unit.shape[-1]))
    similar = unit @ chosen.transpose(1, 2)
    for number, quota in enumerate(shared(keep - there.sum(1), asked).unbind(1)):
        free = image & (score == 0)
        order = similar[..., number].masked_fill(~free, float("inf")).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)
        score = score + (free & (rank < quota[:, None]))
    return score


def largest(
    size: Float[Tensor, "s l"], among: Bool[Tensor, "s l"], count: int
) -> tuple[Int[Tensor, "s p"], Bool[Tensor, "s p"]]:
    """The columns of the largest sizes, and False where a sample has fewer."""
    order = size.masked_fill(~among, -1.0).argsort(dim=1, descending=True, stable=True)[:, :count]
    return order, among.gather(1, order)


def shared(total: Int[Tensor, "s"], among: Bool[Tensor, "s p"]) -> Int[Tensor, "s p"]:
    """The total in equal parts for those that are True, the first of them one more where it does not go into them."""
    number = among.sum(1).clamp(min=1)
    each, rest = total // number, total % number
    return torch.where(among, each[:, None] + (among.cumsum(1) <= rest[:, None]), 0)
