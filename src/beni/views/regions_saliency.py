"""Crops of what stands out in a picture: the windows in which the spectral residual of its pixels is highest on average
(``spectral_residual.py``), none of which overlaps too much with one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from PIL.Image import Image as Picture

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import best_windows, even_windows, require_sizes
from beni.types import Box, TokenSpec
from beni.views.regions import RegionViews, as_boxes
from beni.views.spectral_residual import spectral_residual


class SalientCrops(RegionViews):
    """``(k, n, d) -> (i, ~, d)``: the whole picture, then the crops that stand out, the most striking of a size first.
    A picture of one colour is cropped at even distances.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        regions: crops of a picture.
        sizes: of crops, as shares of the picture's sides; each gets an equal portion of the crops.
        overlap: intersection over union above which crops of one size exclude each other.
        join: let the resampler see all views of an image at once.

    Raises:
        ConfigError: when there are no ``sizes``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        *,
        regions: Annotated[int, AtLeast(1)],
        sizes: list[Annotated[float, Above(0), AtMost(1)]],
        overlap: Annotated[float, AtLeast(0), AtMost(1)],
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, regions, join)
        require_sizes(sizes, "views.sizes")
        self.sizes, self.overlap = sizes, overlap

    def propose(self, picture: Picture) -> Sequence[Box]:
        heat = spectral_residual(picture)
        if not heat.any():
            return as_boxes(even_windows(self.regions, self.sizes))
        boxes, _ = best_windows(heat[None], self.regions, self.sizes, self.overlap)
        return as_boxes(boxes[0])
