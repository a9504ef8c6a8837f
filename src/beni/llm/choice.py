"""Which image tokens stay in front of a layer, from their scores, and what becomes of those that leave."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.llm.watch import Grid
from beni.types import Recycling


def precise(like: Tensor) -> AbstractContextManager[Any]:
    """Around scores: products in the precision that they are written in."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def ranked(scores: Float[Tensor, "s l"], image: Bool[Tensor, "s l"]) -> Int[Tensor, "s l"]:
    """The rank of each image token among those of its sample, the highest score first, the earlier of equal ones first;
    others behind them. Without values all are equal.
    """
    scores = torch.zeros(image.shape, device=image.device) if scores.is_meta else scores
    order = scores.masked_fill(~image, float("-inf")).argsort(dim=1, descending=True, stable=True)
    where = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, where)


def parted(chosen: Bool[Tensor, "s l"], real: Bool[Tensor, "s l"]) -> Int[Tensor, "s m"]:
    """The columns where ``chosen`` is True of real ones, in order, as many as any sample has; then others."""
    chosen = chosen & real
    return (~chosen).long().argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]


def recycled(
    recycling: Recycling,
    hidden: Float[Tensor, "b t d"],
    grid: Grid,
    ranks: Int[Tensor, "s l"],
    kept: Bool[Tensor, "s l"],
) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "s l"]]:
    """Hidden states with the mean of each cluster of leaving tokens at its centre, and what is kept with those."""
    flat, kept = hidden.flatten(0, 1), kept.clone()
    leaving = (~kept & grid.real).sum(1).tolist()
    for sample, (number, order) in enumerate(zip(leaving, ranks.argsort(1), strict=True)):
        averaged, clusters = recycling.counts(number)
        if not averaged:
            continue
        columns = order[~kept[sample][order] & grid.real[sample][order]][:averaged]
        index = grid.index[sample][columns]
        tokens = flat[index]
        centres, cluster = recycling.clusters(tokens.detach().float(), clusters)
        sums = tokens.new_zeros(clusters, tokens.shape[1]).index_add(0, cluster, tokens)
        means = sums / cluster.bincount(minlength=clusters)[:, None]
        flat = flat.index_copy(0, index[centres], means.to(flat.dtype))
        kept[sample, columns[centres]] = True
    return flat.view_as(hidden), kept
