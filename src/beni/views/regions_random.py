"""Random crops: the other baseline. They are drawn for the pixels of a picture, and so the same whenever it is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from PIL.Image import Image as Picture

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import dealt, require_sizes
from beni.nn.streams import numpy_stream
from beni.types import Box, TokenSpec
from beni.views.regions import RegionViews, as_boxes


class RandomCrops(RegionViews):
    """``(k, n, d) -> (i, ~, d)``: the whole picture, then crops from anywhere in it, evenly likely.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        regions: crops of a picture.
        sizes: of crops, as shares of the picture's sides; each gets an equal portion of the crops.
        seed: draws other crops for the same pictures.
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
        seed: Annotated[int, AtLeast(0)],
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, regions, join)
        require_sizes(sizes, "views.sizes")
        self.seed, self.sizes = seed, dealt(regions, sizes)

    def propose(self, picture: Picture) -> Sequence[Box]:
        shown = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        sizes = np.array(self.sizes)[:, None]
        corners = numpy_stream(self.seed, "crops", shown).random((self.regions, 2)) * (1 - sizes)
        return as_boxes(np.concatenate([corners, np.minimum(corners + sizes, 1.0)], 1))
