"""HoloV: a budget for each part of the picture, by how much is attended to and how varied it is (arXiv 2510.02912).

The tokens of a row in reading order are cut into crops of equal length. Each crop gets a share of the budget by the
mean attention of the encoder to its tokens, and keeps those with the highest scores: a token's score is the attention
to it, and ``diversity`` times the variance of its cosines with the others of its crop, scaled to the size of the
attention.

Reference: ``HoloV`` of the released ``utils.py``, whose variance counts a token's likeness to itself as 0, as here.
Deviations: there crops are weighed by the mean score, from which the variance cancels, since it is scaled to the mean
attention of its own crop; and tokens are ranked by attention alone, so that ``diversity`` changes nothing. Here tokens
are ranked by their score; ``diversity=0`` is the reference. Where a crop has fewer tokens than its share, the reference
fills up with zeros; here the tokens with the largest attention of other crops fill up.
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


class HoloV(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
        crops: parts of the picture that have a budget of their own.
        diversity: weight of the variance beside the attention.
    """

    reads: frozenset[Reads] = frozenset({"attn"})

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        crops: Annotated[int, AtLeast(1)],
        diversity: Annotated[float, AtLeast(0)],
    ) -> None:
        super().__init__()
        self.budget = Budget(keep)
        self.positions: Positions = positions
        self.crops, self.diversity = crops, diversity

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return chosen_spec(tokens, self.budget, self.positions)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made, which = in_full_rows(tokens, self.budget, self._by_crop)
        return kept(made, which, self.budget, self.positions)

    def init_weights(self) -> None:
        """Nothing to draw."""

    def _by_crop(self, rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
        if rows.attn is None:
            raise ValueError("selector=holov was given no attention of the encoder")
        attn = rows.attn.float()
        crop = crop_numbers(attn.shape[1], self.crops, attn.device)
        members = crop == torch.arange(min(self.crops, attn.shape[1]), device=attn.device)[:, None]  # (c, n)
        own = members.to(attn.dtype)
        means = attn @ own.T / own.sum(1)
        share = means / (means.sum(1, keepdim=True) + EPSILON)
        granted = (share * k).floor()
        best = torch.argsort(torch.argsort(share, dim=1, descending=True, stable=True), dim=1)  # rank of each crop
        granted = granted + (best < k - granted.sum(1, keepdim=True))
        scores = self._scores(unit(rows.x.detach()).float(), attn, own)
        higher = (scores[:, None] > scores[..., None]) | ((scores[:, None] == scores[..., None]) & _earlier(scores))
        rank = (higher & (crop[:, None] == crop)).sum(2)  # tokens of its crop with a higher score
        first = rank < granted[:, crop]
        lifted = torch.where(first, attn + attn.amax() + 1, attn)  # attention is at least 0
        ranking = torch.argsort(lifted, dim=1, descending=True, stable=True)
        return rows, at_places(ranking[:, :k], attn.shape[1])

    def _scores(
        self, directions: Float[Tensor, "g n d"], attn: Float[Tensor, "g n"], own: Float[Tensor, "c n"]
    ) -> Float[Tensor, "g n"]:
        """Attention to each token and its variety within its crop, of which a token alone has none."""
        in_crop = own.T @ own  # 1 for two tokens of one crop
        others = (in_crop.sum(1) - 1).clamp(min=1)
        alike = directions @ directions.transpose(1, 2) * (in_crop - torch.eye(len(in_crop), device=attn.device))
        mean = alike.sum(2) / others
        variance = ((alike - mean[..., None]).square() * in_crop).sum(2) / others
        sizes = own.sum(1)
        level = (attn @ own.T / sizes) / (variance @ own.T / sizes + EPSILON)  # (g, c)
        return attn + self.diversity * variance * (level @ own)


EPSILON = 1e-6


def crop_numbers(n: int, crops: int, device: torch.device) -> Int[Tensor, "n"]:
    """The crop of each of ``n`` tokens; the first crops have one more where the tokens do not divide."""
    each, more = divmod(n, crops)
    sizes = torch.tensor([each + (crop < more) for crop in range(crops)], device=device)
    return torch.arange(crops, device=device).repeat_interleave(sizes, output_size=n)


def _earlier(attn: Float[Tensor, "g n"]) -> Tensor:
    places = torch.arange(attn.shape[1], device=attn.device)
    return places < places[:, None]
