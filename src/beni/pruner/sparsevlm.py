"""SparseVLM (arXiv 2410.04417): the words that the image is about judge its tokens, and what leaves is recycled.

Reference: ``modelling_sparse_llama.py``, ``score.py`` and ``utils.py`` of the release (Gumpest/SparseVLMs), its path
for inference, with the numbers of tokens that it fixes instead of using the rank of the attention (300, 200 and 110 of
576, behind the layers 2, 6 and 15). Before the first layer image tokens choose the words that judge: those above the
mean of what image embeddings give them. Behind each of the layers these words' attention, averaged, ranks the image
tokens. Of those that leave the best are clustered by density peaks, and each cluster's mean stays.

Deviations: a mean stays in the place of its cluster's centre, not behind the image; densities get no noise, so equal
ones are told apart by their order; any number of samples and images. The release renumbers positions
(``positions: compact``).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.pruner.base import Pruner, cuts_before
from beni.types import Candidates, Cut, Pruning, Recycling

RATERS = 64
"""Words whose attention is computed at a time."""


class SparseVlm(Pruner):
    """Keeps the image tokens that the words about them attend to most, and means of others.

    Args:
        layers: numbers of the decoder layers before which tokens leave, from 1 on.
        keep: share of a sample's image tokens, as many as there were at first, that stays as it is behind each.
        recycle: share of the leaving tokens, those ranked highest, that is clustered; 0 recycles none.
        cluster: tokens for which there is one cluster.
        positions: ``preserve``: those that stay keep their positions; ``compact``: they move up.
    """

    def __init__(
        self,
        *,
        layers: list[Annotated[int, AtLeast(1)]],
        keep: list[Annotated[float, Above(0), AtMost(1)]],
        recycle: Annotated[float, AtLeast(0), AtMost(1)],
        cluster: Annotated[int, AtLeast(1)],
        positions: Literal["preserve", "compact"],
    ) -> None:
        self.layers, self.keep, self.positions = layers, keep, positions
        self.recycling = Recycling(recycle, cluster, density_peaks) if recycle else None

    @property
    def prunes(self) -> bool:
        return any(share < 1 for share in self.keep)

    def plan(self, depth: int) -> Pruning:
        cut = partial(Cut, score=rated, sees="before", recycling=self.recycling)
        cuts = cuts_before(self.layers, self.keep, depth, cut)
        return Pruning(cuts, raters=about_image, compact=self.positions == "compact")


def about_image(
    image: Float[Tensor, "s m d"], there: Bool[Tensor, "s m"], text: Float[Tensor, "s r d"], may: Bool[Tensor, "s r"]
) -> Bool[Tensor, "s r"]:
    """True at words that the image's tokens give more than the mean of the words, by products of embeddings."""
    given = (image @ text.transpose(1, 2)).masked_fill(~may[:, None], float("-inf")).softmax(-1)
    given = given.masked_fill(~there[..., None], 0.0).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
    mean = given.masked_fill(~may, 0.0).sum(1, keepdim=True) / may.sum(1, keepdim=True).clamp(min=1)
    return may & (given > mean)


def rated(candidates: Candidates) -> Float[Tensor, "s l"]:
    """How much the judging words attend to each token: the mean over heads and words. Where no word judges, the last
    position before the first answer does.
    """
    raters, words, last = candidates.raters, candidates.words, candidates.last[:, None]
    alone = ~raters.any(1, keepdim=True)
    columns, judges = torch.cat([words, last], 1), torch.cat([raters.gather(1, words), alone], 1)
    total = torch.zeros(raters.shape, device=raters.device)
    for some, judging in zip(columns.split(RATERS, 1), judges.split(RATERS, 1), strict=True):
        weights = candidates.attention.weights(some).mean(1)  # (s, r, l)
        total = total + (weights * judging[..., None]).sum(1)
    return total / judges.sum(1, keepdim=True)


def density_peaks(tokens: Float[Tensor, "n d"], clusters: int) -> tuple[Int[Tensor, "c"], Int[Tensor, "n"]]:
    """Clustering by density peaks with nearest neighbours: centres are dense, and far from what is denser."""
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[1] ** 0.5
    density = (-distance.topk(clusters, largest=False).values.square().mean(-1)).exp()
    denser = density[None] > density[:, None]
    apart = torch.where(denser, distance, distance.max()).amin(1)
    centres = (apart * density).argsort(descending=True, stable=True)[:clusters]
    cluster = distance[centres].argmin(0)
    cluster[centres] = torch.arange(clusters, device=tokens.device)
    return centres, cluster
