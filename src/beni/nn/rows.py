"""Rows of visual tokens that differ in length: cut to their real tokens, put end to end, padded to one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from beni.types import VisualTokens


def stack(parts: Sequence[VisualTokens], places: Sequence[Int[Tensor, "_"]]) -> VisualTokens:
    """Batches of rows -> one batch, each row padded to the longest.

    Args:
        parts: batches, each with rows of one length.
        places: for each batch, where its rows stand in the result.
    """
    return VisualTokens.stack(parts).select(torch.argsort(torch.cat(list(places))))


def by_grid(tokens: VisualTokens) -> list[tuple[Int[Tensor, "_"], VisualTokens]]:
    """Rows on grids of several shapes -> for each shape the places of its rows and these, dense."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for place, grid in enumerate(tokens.grids):
        shapes.setdefault(grid, []).append(place)
    groups = []
    for (rows, columns), where in shapes.items():
        places = torch.tensor(where, device=tokens.x.device)
        n = rows * columns
        groups.append((places, tokens.map(lambda tensor, w=places, n=n: tensor[w][:, :n], (rows, columns))))
    return groups


def images_of(
    tokens: VisualTokens, counts: Sequence[int], make: Callable[[int, VisualTokens], VisualTokens]
) -> VisualTokens:
    """Rows -> one row an image, padded to the longest.

    Args:
        counts: rows of each image, in order.
        make: number of an image and its rows, without padding where they are on one grid -> its one row.
    """
    made, start = [], 0
    for number, count in enumerate(counts):
        rows = torch.arange(start, start + count, device=tokens.x.device)
        own = tokens.select(rows)
        made.append(make(number, by_grid(own)[0][1] if len(set(own.grids)) == 1 else own))
        start += count
    if start != len(tokens.x):
        raise ValueError(f"{start} rows were expected of {len(counts)} images, {len(tokens.x)} came")
    return stack(made, [torch.tensor([i], device=tokens.x.device) for i in range(len(made))])


def real_tokens(tokens: VisualTokens) -> VisualTokens:
    """``(k, n, d) -> (1, m, d)``: all tokens that have a place in the text, of all rows, end to end as one row."""
    laid = tokens.laid
    return tokens.map(lambda tensor: tensor[laid][None])


def constants(vectors: Float[Tensor, "k d"], like: VisualTokens) -> VisualTokens:
    """``(k, d) -> (1, k, d)``: learned tokens, which stand for no patch and in the middle of the view."""
    k = len(vectors)
    return VisualTokens.fresh(
        x=vectors.to(like.x.dtype)[None],
        mask=like.mask.new_ones(1, k),
        yx=like.yx.new_full((1, k, 2), 0.5),
        size=like.size.new_zeros(1, k),
    )


def constant(vector: Float[Tensor, "d"], like: VisualTokens) -> VisualTokens:
    """``(d) -> (1, 1, d)``: one of them."""
    return constants(vector[None], like)


def with_line_ends(tokens: VisualTokens, vector: Float[Tensor, "d"]) -> VisualTokens:
    """``(i, rows * columns, d), (d) -> (i, rows * (columns + 1), d)``: a learned token after each row of a grid.

    Raises:
        ValueError: when the tokens have no grid.
    """
    grid = tokens.grid
    if grid is None:
        raise ValueError("lines were to be ended of tokens without a grid")
    rows, columns = grid
    both = VisualTokens.cat([tokens, constant(vector, tokens).repeat(len(tokens.x))])
    places = torch.arange(rows * columns, device=tokens.x.device).view(grid)
    lines = torch.cat([places, places.new_full((rows, 1), rows * columns)], 1)
    return both.gather(lines.flatten().expand(len(tokens.x), -1))
