"""Crops at even distances: the baseline of crops, which every way of choosing them must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from PIL.Image import Image as Picture

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import even_windows, require_sizes
from beni.types import Box, TokenSpec
from beni.views.regions import RegionViews, as_boxes


class GridCrops(RegionViews):
    """``(k, n, d) -> (i, ~, d)``: the whole picture, then crops in rows, from edge to edge.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        regions: crops of a picture.
        sizes: of crops, as shares of the picture's sides; each gets an equal portion of the crops.
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
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, regions, join)
        require_sizes(sizes, "views.sizes")
        self.sizes = sizes

    def propose(self, picture: Picture) -> Sequence[Box]:
        return as_boxes(even_windows(self.regions, self.sizes))
