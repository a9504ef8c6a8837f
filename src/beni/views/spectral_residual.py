"""Spectral residual: a heat map of what stands out in a picture (Hou & Zhang, CVPR 2007).

The logarithm of a natural picture's amplitudes is smooth over the frequencies. What is left of it after its local mean
is taken away, brought back to pixels with the phases as they were, is large at what the picture does not repeat. It
takes two Fourier transforms of 64 x 64 numbers and no weights. Deviations: the picture is squashed to a square, there
one side has 64 pixels; neighbours of a frequency are counted around the edge of the spectrum, there the edge is
repeated.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

SIDE = 64
"""Pixels of the picture's sides, and of the map's, as in the paper."""
NEIGHBOURS = 3
"""Frequencies along each side of the local mean."""
BLUR = 2.5
"""Standard deviation in pixels of the Gaussian that smooths the map."""
REACH = 7
"""Pixels on either side that it reaches."""
SILENT = 1e-9
"""Amplitude, as a share of the largest, below which a frequency is rounding."""


def spectral_residual(picture: Picture) -> Float[Tensor, "rows columns"]:
    """A heat map of ``SIDE`` x ``SIDE`` in fp64, 0 everywhere in a picture of one colour."""
    small = picture.convert("L").resize((SIDE, SIDE), Resampling.BICUBIC)
    grey = torch.from_numpy(np.array(small, dtype=np.float64)) / 255
    if grey.amax() == grey.amin():
        return torch.zeros_like(grey)
    spectrum = torch.fft.fft2(grey)
    amplitude = spectrum.abs()
    logarithm = (amplitude + SILENT * amplitude.amax()).log()
    edge = NEIGHBOURS // 2
    around = F.avg_pool2d(F.pad(logarithm[None, None], (edge,) * 4, mode="circular"), NEIGHBOURS, stride=1)[0, 0]
    back = torch.fft.ifft2(torch.polar((logarithm - around).exp(), spectrum.angle()))
    return _smoothed(back.abs().square())


def _smoothed(heat: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    distance = torch.arange(-REACH, REACH + 1, dtype=heat.dtype)
    line = (-(distance**2) / (2 * BLUR**2)).exp()
    line = line / line.sum()
    padded = F.pad(heat[None, None], (REACH,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line[None, None, :, None]), line[None, None, None])[0, 0]
