"""Positions: sines and cosines in two dimensions (MAE, arXiv 2111.06377), and rotations (RoPE, arXiv 2104.09864).

The former are laid out as a table or read between its cells. Their first half of the channels encodes the column, the
second the row, as in MAE and in all that took the code from it (Qwen-VL, MQT): there the column is called ``h``. Each
half is a block of sines, then one of cosines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from beni.types import VisualTokens


def sincos_table(grid: tuple[int, int], dim: int, device: torch.device) -> Float[Tensor, "d rows columns"]:
    """The position of every cell, in float64. ``dim`` must divide by 4."""
    quarter = dim // 4
    rates = 10000.0 ** -(torch.arange(quarter, device=device, dtype=torch.float64) / quarter)
    rows, columns = (rates[:, None] * torch.arange(side, device=device, dtype=torch.float64) for side in grid)
    across = torch.cat([columns.sin(), columns.cos()])[:, None, :].expand(-1, grid[0], -1)
    down = torch.cat([rows.sin(), rows.cos()])[:, :, None].expand(-1, -1, grid[1])
    return torch.cat([across, down])


def positions_at(table: Float[Tensor, "d rows columns"], tokens: VisualTokens) -> Float[Tensor, "j n d"]:
    """The table, bicubically resized, at the place of each token; in the dtype of the tokens.

    One row for all images (``j = 1``) where the tokens form a dense grid, else one an image (``j = i``), read at
    ``tokens.yx``. Both are the same interpolation, so tokens that a selector keeps have the positions they had before.
    """
    wide = table if tokens.x.dtype == torch.float64 else table.float()
    if tokens.grid is not None:
        if tokens.grid != table.shape[1:]:
            wide = F.interpolate(wide[None], tokens.grid, mode="bicubic", align_corners=False)[0]
        return wide.flatten(1).T[None].to(tokens.x.dtype)
    places = tokens.yx.flip(-1).to(wide.dtype) * 2 - 1  # grid_sample wants (x, y), and -1 and 1 at the borders
    read = F.grid_sample(
        wide.expand(len(places), -1, -1, -1),
        places[:, None],
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return read[:, :, 0].transpose(1, 2).to(tokens.x.dtype)


def rotations(places: Int[Tensor, "b t"], dim: int, base: float) -> Float[Tensor, "b 1 t dim"]:
    """The angle by which each channel of a head is turned at each place, in fp32; ``dim`` channels, an even number."""
    rates = base ** -(torch.arange(0, dim, 2, device=places.device, dtype=torch.float32) / dim)
    angles = places[..., None].float() * rates
    return torch.cat([angles, angles], -1)[:, None]


def rotated(x: Float[Tensor, "b h t dim"], angles: Float[Tensor, "b 1 t dim"]) -> Float[Tensor, "b h t dim"]:
    """Channel c and channel c + dim/2 turned in their plane, as the Llama family pairs them."""
    first, second = x.chunk(2, -1)
    return x * angles.cos().to(x.dtype) + torch.cat([-second, first], -1) * angles.sin().to(x.dtype)
