"""RoI-Align: features of a box, read from a map (Mask R-CNN, arXiv 1703.06870).

A box is divided into bins, a bin is the mean of points in it, a point is read between the cells of the map. Nothing is
rounded to cells. torchvision's ``roi_align(aligned=True, sampling_ratio=samples)`` is the same where no point lies
outside of the map; the tests compare with it where it is installed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def roi_align(
    features: Float[Tensor, "i d rows columns"], boxes: Float[Tensor, "i r 4"], bins: int, samples: int
) -> Float[Tensor, "i r m d"]:
    """``(i, d, rows, columns), (i, r, 4) -> (i, r, bins^2, d)``, the bins of a box in reading order.

    Args:
        boxes: (top, left, bottom, right) in [0, 1].
        bins: along each side of a box.
        samples: points along each side of a bin.
    """
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32  # bf16 has 1/256 of a map at most
    side = bins * samples
    steps = (torch.arange(side, device=features.device, dtype=wide) + 0.5) / side
    top, left, bottom, right = boxes.to(wide)[..., None].unbind(2)  # (i, r, 1) each
    y, x = top + steps * (bottom - top), left + steps * (right - left)  # (i, r, side)
    points = torch.stack([x[:, :, None].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], -1)
    read = F.grid_sample(
        features.to(wide),
        2 * points.flatten(2, 3) - 1,  # -1 and 1 are the borders of the map
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # (i, d, r, side^2)
    split = read.unflatten(3, (bins, samples, bins, samples)).mean((4, 6))  # (i, d, r, bins, bins)
    return split.flatten(3).permute(0, 2, 3, 1).to(features.dtype)


def bin_centres(boxes: Float[Tensor, "i r 4"], bins: int) -> Float[Tensor, "i r m 2"]:
    """(row, column) in [0, 1] of the centre of each bin."""
    steps = (torch.arange(bins, device=boxes.device, dtype=boxes.dtype) + 0.5) / bins
    top, left, bottom, right = boxes[..., None].unbind(2)
    y, x = top + steps * (bottom - top), left + steps * (right - left)
    places = [y[..., None].expand(-1, -1, -1, bins), x[:, :, None].expand(-1, -1, bins, -1)]
    return torch.stack(places, -1).flatten(2, 3)
