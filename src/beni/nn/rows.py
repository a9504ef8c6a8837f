"""Rows of visual tokens that differ in length: cut to their real tokens, put end to end, padded to one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from beni.types import VisualTokens


def concatenate(pieces: Sequence[VisualTokens]) -> VisualTokens:
    """``(i, n, d), (i, m, d), ... -> (i, n + m + ..., d)``: the tokens of each row end to end, on no grid.

    Padding of a piece would stand between real tokens, so pieces have none.
    """
    levels = [piece.levels for piece in pieces if piece.levels is not None]
    return VisualTokens(
        x=torch.cat([piece.x for piece in pieces], 1),
        mask=torch.cat([piece.mask for piece in pieces], 1),
        yx=torch.cat([piece.yx for piece in pieces], 1),
        size=torch.cat([piece.size for piece in pieces], 1),
        levels=torch.cat(levels, 1) if len(levels) == len(pieces) else None,
    )


def stack(parts: Sequence[VisualTokens], places: Sequence[Int[Tensor, "_"]]) -> VisualTokens:
    """Batches of rows -> one batch, each row padded to the longest.

    Args:
        parts: batches, each with rows of one length.
        places: for each batch, where its rows stand in the result.
    """
    order = torch.argsort(torch.cat(list(places)))
    longest = max(part.x.shape[1] for part in parts)
    grids = [part.grid for part, where in zip(parts, places, strict=True) for _ in where]
    same = len(set(grids)) == 1
    levels = [part.levels for part in parts if part.levels is not None]

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        long = [F.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in tensors]
        return torch.cat(long)[order]

    return VisualTokens(
        x=padded([part.x for part in parts]),
        mask=padded([part.mask for part in parts]),
        yx=padded([part.yx for part in parts]),
        size=padded([part.size for part in parts]),
        grid=grids[0] if same else None,
        levels=padded(levels) if len(levels) == len(parts) else None,
        grids=() if same else tuple(grid for i in order.tolist() if (grid := grids[i]) is not None),
    )


def by_grid(tokens: VisualTokens) -> list[tuple[Int[Tensor, "_"], VisualTokens]]:
    """Rows on grids of several shapes -> for each shape the places of its rows and these, dense."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for place, grid in enumerate(tokens.grids):
        shapes.setdefault(grid, []).append(place)
    groups = []
    for (rows, columns), where in shapes.items():
        places = torch.tensor(where, device=tokens.x.device)
        n, chosen = rows * columns, replace(tokens, grids=(), sources=()).select(places)
        dense = VisualTokens(
            x=chosen.x[:, :n],
            mask=chosen.mask[:, :n],
            yx=chosen.yx[:, :n],
            size=chosen.size[:, :n],
            grid=(rows, columns),
            levels=None if chosen.levels is None else chosen.levels[:, :n],
        )
        groups.append((places, dense))
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
    """``(k, n, d) -> (1, m, d)``: all real tokens of all rows end to end, as one row."""
    levels = None if tokens.levels is None else tokens.levels[tokens.mask][None]
    x, yx, size = (t[tokens.mask][None] for t in (tokens.x, tokens.yx, tokens.size))
    return VisualTokens(x, torch.ones_like(size, dtype=torch.bool), yx, size, levels=levels)


def constant(vector: Float[Tensor, "d"], like: VisualTokens) -> VisualTokens:
    """``(d) -> (1, 1, d)``: a learned token, which stands for no patch and in the middle of the view."""
    return VisualTokens(
        x=vector.to(like.x.dtype)[None, None],
        mask=like.mask.new_ones(1, 1),
        yx=like.yx.new_full((1, 1, 2), 0.5),
        size=like.size.new_zeros(1, 1),
    )


def with_line_ends(tokens: VisualTokens, vector: Float[Tensor, "d"]) -> VisualTokens:
    """``(i, rows * columns, d), (d) -> (i, rows * (columns + 1), d)``: a learned token after each row of a grid.

    Raises:
        ValueError: when the tokens have no grid.
    """
    grid = tokens.grid
    if grid is None:
        raise ValueError("lines were to be ended of tokens without a grid")
    end = constant(vector, tokens)

    def ended(x: Tensor, last: Tensor) -> Tensor:
        lines = x.unflatten(1, grid)  # (i, rows, columns, ...)
        return torch.cat([lines, last[:, None].expand(*lines.shape[:2], 1, *lines.shape[3:])], 2).flatten(1, 2)

    return VisualTokens(
        x=ended(tokens.x, end.x),
        mask=ended(tokens.mask, end.mask),
        yx=ended(tokens.yx, end.yx),
        size=ended(tokens.size, end.size),
    )
