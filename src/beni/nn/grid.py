"""Visual tokens as a map and back, and space-to-depth: what every mechanism that works on the grid shares.

The grid always comes with the tokens; a side is never guessed from ``sqrt(n)``, which takes 24x32 for a square.

Space-to-depth puts the tokens of a block side by side in the channels, in the order (row in the block, column in the
block, channel), as Idefics3, InternVL, Llama 4 and Qwen2-VL have it. ``F.pixel_unshuffle``, ``F.unfold``, strided
convolutions and Mistral 3 order (channel, row, column): the same up to a permutation of the next layer's weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from beni.errors import CompositionError
from beni.types import TokenSpec, VisualTokens


def grid_of(tokens: TokenSpec, part: str) -> tuple[int, int]:
    """(rows, columns) of the grid that ``part`` (``resampler=avg_pool``) needs.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """
    if tokens.grid is None:
        raise CompositionError(
            "E-GRID",
            f"{part} needs a dense grid, but the tokens before it form none",
            groups=("selector", "resampler"),
            fix="set selector=none, or resampler=perceiver",
        )
    return tokens.grid


def merged_grid(tokens: TokenSpec, r: int, part: str) -> tuple[int, int]:
    """(rows, columns) of the grid of ``part`` on which each token stands for ``r x r`` incoming ones.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides.
    """
    rows, columns = grid_of(tokens, part)
    if r < 1 or rows % r or columns % r:
        legal = [str(k) for k in range(1, min(rows, columns) + 1) if rows % k == 0 and columns % k == 0]
        raise CompositionError(
            "E-DIV",
            f"{part}: r={r} does not divide the {rows}x{columns} grid of visual tokens",
            groups=("vision", "resampler"),
            fix=f"set resampler.r to one of {', '.join(legal)}, or another vision.image_size",
        )
    return rows // r, columns // r


def regrid(tokens: TokenSpec, grid: tuple[int, int], dim: int) -> TokenSpec:
    """The spec of tokens on another grid; what came along on the old grid (levels, sources) does not go on."""
    return TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid, space=tokens.space, scale=tokens.scale)


def to_map(tokens: VisualTokens) -> Float[Tensor, "i d rows columns"]:
    """``(i, n, d) -> (i, d, rows, columns)``.

    Raises:
        ValueError: when the tokens have no grid.
    """
    if tokens.grid is None:
        raise ValueError("a map was asked of tokens without a grid")
    return tokens.x.transpose(1, 2).unflatten(2, tokens.grid)


def from_map(features: Float[Tensor, "i d rows columns"], tokens: VisualTokens) -> VisualTokens:
    """``(i, d, rows, columns) -> (i, rows * columns, d)``: a map made of ``tokens``, on any other or the same grid.

    Each new token stands for the patches under its cell when both grids cover the same picture; the sum is conserved.

    Raises:
        ValueError: when ``tokens`` have no grid.
    """
    if tokens.grid is None:
        raise ValueError("a map was made of tokens without a grid")
    grid = (features.shape[2], features.shape[3])
    dense = VisualTokens.dense(features.flatten(2).transpose(1, 2), grid)
    rows, columns = (_overlap(a, b, tokens.size) for a, b in zip(grid, tokens.grid, strict=True))
    size = tokens.size.unflatten(1, tokens.grid)
    # sums, not matrix products: autocast would round those to bf16, and they would count as FLOPs
    size = (rows[None, :, :, None] * size[:, None]).sum(2)
    size = (columns[None, None] * size[:, :, None]).sum(3)
    return replace(dense, size=size.flatten(1))


def space_to_depth(tokens: VisualTokens, block: tuple[int, int]) -> VisualTokens:
    """``(i, rows * columns, d) -> (i, rows/r * columns/c, r * c * d)`` for a block of r rows and c columns.

    Where a side does not divide, the last blocks are filled with zeros; they stand for, and where, their real tokens.

    Raises:
        ValueError: when the tokens have no grid.
    """
    features = to_map(tokens)
    rows, columns = features.shape[2:]
    down, right = -rows % block[0], -columns % block[1]
    blocks = blocks_of(F.pad(features, (0, right, 0, down)), block)  # (i, m, r * c, d)
    facts = torch.cat([tokens.size[..., None], torch.ones_like(tokens.size)[..., None], tokens.yx], -1)
    facts = F.pad(facts.transpose(1, 2).unflatten(2, (rows, columns)), (0, right, 0, down))
    size, real, yx = blocks_of(facts, block).sum(2).split((1, 1, 2), -1)
    grid = ((rows + down) // block[0], (columns + right) // block[1])
    return VisualTokens.fresh(
        x=blocks.flatten(2),
        mask=tokens.mask.new_ones(blocks.shape[:2]),
        yx=yx / real,
        size=size.squeeze(-1),
        grid=grid,
    )


def blocks_of(features: Float[Tensor, "i d rows columns"], block: tuple[int, int]) -> Float[Tensor, "i m k d"]:
    """The places of each block of r rows and c columns, which divide the sides; blocks and places row-major."""
    x = features.unflatten(3, (-1, block[1])).unflatten(2, (-1, block[0]))  # (i, d, H/r, r, W/c, c)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _overlap(out: int, side: int, like: Tensor) -> Float[Tensor, "out side"]:
    """The share of each of ``side`` equal cells that falls under each of ``out`` equal cells of the same length."""
    edges = torch.arange(out + 1, device=like.device, dtype=like.dtype) * (side / out)
    cells = torch.arange(side, device=like.device, dtype=like.dtype)
    low = torch.maximum(edges[:-1, None], cells)
    high = torch.minimum(edges[1:, None], cells + 1)
    return (high - low).clamp(min=0)
