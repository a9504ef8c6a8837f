"""Boxes in a picture, and windows of it that a heat map makes the most of.

A box is (top, left, bottom, right), each a share of the picture's side, from 0 to 1. torchvision has other conventions
and need not be installed; the tests compare with it where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.errors import ConfigError


def areas(boxes: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Shares of the picture that boxes cover."""
    top, left, bottom, right = boxes.unbind(-1)
    return (bottom - top).clamp(min=0) * (right - left).clamp(min=0)


def overlaps(a: Float[Tensor, "*b k 4"], b: Float[Tensor, "*b l 4"]) -> Float[Tensor, "*b k l"]:
    """Intersection over union of each of ``k`` boxes with each of ``l``; 0 for two boxes without an area."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    common = areas(torch.cat([torch.maximum(a, b)[..., :2], torch.minimum(a, b)[..., 2:]], -1))
    return common / (areas(a) + areas(b) - common).clamp(min=torch.finfo(common.dtype).tiny)


def suppressed(
    boxes: Float[Tensor, "i k 4"], scores: Float[Tensor, "i k"], overlap: float, count: int
) -> tuple[Int[Tensor, "i count"], Bool[Tensor, "i count"]]:
    """Non-maximum suppression that leaves as many boxes as were asked for.

    The best box is taken and all that overlap with it are set aside, again and again. When none is left that was not
    set aside, the best of those come; when there are no more boxes at all, they come again, from the best on.

    Args:
        scores: finite numbers.
        overlap: intersection over union above which a box is set aside.

    Returns:
        The places of the boxes in the order in which they were taken, and True at those that overlap with none before
        them.
    """
    k = boxes.shape[1]
    rows = torch.arange(len(boxes), device=boxes.device)
    aside, taken = torch.zeros_like(scores, dtype=torch.bool), torch.zeros_like(scores, dtype=torch.bool)
    places, clear = [], []
    for _ in range(min(count, k)):
        free = (~aside).any(1)
        candidates = torch.where(free[:, None], ~aside, ~taken)
        place = scores.masked_fill(~candidates, -torch.inf).argmax(1)
        near = overlaps(boxes[rows, place][:, None], boxes)[:, 0] > overlap
        taken = taken.scatter(1, place[:, None], True)
        aside = aside | near | taken
        places.append(place)
        clear.append(free)
    again = torch.arange(count, device=boxes.device) % k
    once = torch.arange(count, device=boxes.device) < k
    return torch.stack(places, 1)[:, again], torch.stack(clear, 1)[:, again] & once


def portions(count: int, kinds: int) -> list[int]:
    """``count`` things dealt to ``kinds`` kinds as evenly as can be, the first ones getting what is left over."""
    return [count // kinds + (kind < count % kinds) for kind in range(kinds)]


def dealt(count: int, sizes: Sequence[float]) -> list[float]:
    """The size of each of ``count`` windows, of which every size gets its portion."""
    return [size for number, size in zip(portions(count, len(sizes)), sizes, strict=True) for _ in range(number)]


def even_windows(count: int, sizes: Sequence[float]) -> Float[Tensor, "count 4"]:
    """Windows at even distances: each size gets its portion of them, in rows, from edge to edge of the picture.

    Args:
        sizes: of the windows, as shares of the picture's sides.
    """
    boxes = []
    for number, size in zip(portions(count, len(sizes)), sizes, strict=True):
        lines = portions(number, math.ceil(number / math.ceil(math.sqrt(number)))) if number else []
        for top, columns in zip(_spread(len(lines), size), lines, strict=True):
            boxes += [(top, left, top + size, left + size) for left in _spread(columns, size)]
    return torch.tensor(boxes, dtype=torch.float64).clamp(0, 1).reshape(-1, 4)


def _spread(count: int, size: float) -> list[float]:
    """Where ``count`` windows of a size begin along a side; one is in the middle."""
    return [(1 - size) * (j / (count - 1) if count > 1 else 0.5) for j in range(count)]


def cell_windows(grid: tuple[int, int], size: float) -> tuple[tuple[int, int], Float[Tensor, "k 4"]]:
    """Rows and columns of a window of a size on a grid, one at least, and the boxes of all its places in reading order.

    Args:
        size: as a share of the grid's sides.
    """
    tall, wide = (max(1, round(side * size)) for side in grid)
    lines = (torch.arange(grid[0] - tall + 1.0), torch.arange(grid[1] - wide + 1.0))
    tops, lefts = torch.meshgrid(*(line.double() for line in lines), indexing="ij")
    boxes = torch.stack([tops / grid[0], lefts / grid[1], (tops + tall) / grid[0], (lefts + wide) / grid[1]], -1)
    return (tall, wide), boxes.flatten(0, 1)


def window_means(heat: Float[Tensor, "i rows columns"], window: tuple[int, int]) -> Float[Tensor, "i k"]:
    """The mean of a map in every window of so many rows and columns, in reading order, by the integral image: four
    reads for a window, however large it is. Sums are in fp64, as they are differences of large numbers.
    """
    tall, wide = window
    total = F.pad(heat.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    sums = total[:, tall:, wide:] - total[:, :-tall, wide:] - total[:, tall:, :-wide] + total[:, :-tall, :-wide]
    return (sums / (tall * wide)).flatten(1).to(heat.dtype)


def best_windows(
    heat: Float[Tensor, "i rows columns"], count: int, sizes: Sequence[float], overlap: float
) -> tuple[Float[Tensor, "i count 4"], Float[Tensor, "i count"]]:
    """The windows in which a map is highest on average, and these means: each size gets its portion, and windows of one
    size that overlap too much exclude each other (``suppressed``).
    """
    boxes, means = [], []
    for number, size in zip(portions(count, len(sizes)), sizes, strict=True):
        if number:
            window, places = cell_windows((heat.shape[1], heat.shape[2]), size)
            places, own = places.to(heat).expand(len(heat), -1, -1), window_means(heat, window)
            order, _ = suppressed(places, own.detach(), overlap, number)
            boxes.append(places.gather(1, order[..., None].expand(-1, -1, 4)))
            means.append(own.gather(1, order))
    return torch.cat(boxes, 1), torch.cat(means, 1)


def component(mask: Bool[Tensor, "i rows columns"], seed: Int[Tensor, "i"]) -> Bool[Tensor, "i rows columns"]:
    """What of a mask hangs together with its cell ``seed`` through sides of cells; nothing where that is False."""
    reached = torch.zeros_like(mask).flatten(1).scatter(1, seed[:, None], True).view_as(mask) & mask
    for _ in range(mask.shape[1] * mask.shape[2]):
        wider = F.pad(reached, (1, 1, 1, 1))
        beside = wider[:, :-2, 1:-1] | wider[:, 2:, 1:-1] | wider[:, 1:-1, :-2] | wider[:, 1:-1, 2:]
        grown = mask & (reached | beside)
        if grown.is_meta or grown.equal(reached):
            break
        reached = grown
    return reached


def box_around(mask: Bool[Tensor, "i rows columns"]) -> Float[Tensor, "i 4"]:
    """The smallest box that holds every True cell; the whole picture where there is none."""
    sides = []
    for axis in (2, 1):
        line = mask.any(axis).long()
        length = line.shape[1]
        sides.append((line.argmax(1).double() / length, 1 - line.flip(1).argmax(1).double() / length))
    return torch.stack([edge for pair in zip(*sides, strict=True) for edge in pair], -1)


def require_sizes(sizes: Sequence[float], option: str) -> None:
    """Raises ConfigError where no size of a window is given.

    Args:
        option: the key, as on the command line.
    """
    if not sizes:
        raise ConfigError(f"{option}=[], expected sizes of windows as shares of a side\n  fix: set {option}=[0.5,0.25]")
