"""Crops of what an object detector finds, whatever the class: its best boxes, none of which overlaps too much with one
before it.

A box grows by a margin to the shape of the picture, so that its crop is squashed as the whole view is. Where there are
fewer detections than crops, windows at even distances take their places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from jaxtyping import Float
from PIL.Image import Image as Picture
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import areas, even_windows, suppressed
from beni.nn.pixels import ImageTransform, as_size, as_triple
from beni.types import Box, TokenSpec
from beni.views.detector import Detector, detector_config
from beni.views.regions import ASSUMED, RegionViews, as_boxes


class DetectorCrops(RegionViews):
    """``(k, n, d) -> (i, ~, d)``: the whole picture, then the crops of its objects, the surest first.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        name: hub id or local folder of the detector; ``null`` when there is none.
        weights: ``pretrained``, or ``random`` for plans and tests.
        architecture: fields of the Hugging Face config, ``model_type`` among them; ``null`` reads those of ``name``.
        image_size: side of the square that the detector sees in pixels, or [height, width]; pictures are squashed.
        mean: per-channel mean of pixel values in [0, 1].
        std: per-channel standard deviation.
        threshold: score below which a box is no detection.
        overlap: intersection over union above which the less sure of two boxes is left out.
        margin: by which a box grows on every side, as a share of its longer side.
        least: smallest crop, as a share of the picture's sides: a few pixels show nothing more when they are enlarged.
        regions: crops of a picture.
        join: let the resampler see all views of an image at once.

    Raises:
        ConfigError: when neither ``name`` nor ``architecture`` says which detector, or it is none.
        WeightsError: when ``architecture`` is null and that of ``name`` cannot be had.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        *,
        name: str | None,
        weights: Literal["pretrained", "random"],
        architecture: dict[str, Any] | None,
        image_size: Annotated[int, AtLeast(1)] | list[Annotated[int, AtLeast(1)]],
        mean: list[float],
        std: list[Annotated[float, Above(0)]],
        threshold: Annotated[float, AtLeast(0), AtMost(1)],
        overlap: Annotated[float, AtLeast(0), AtMost(1)],
        margin: Annotated[float, AtLeast(0)],
        least: Annotated[float, AtLeast(0), AtMost(1)],
        regions: Annotated[int, AtLeast(1)],
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, regions, join)
        config = detector_config(name, architecture)
        fields = json.dumps(config.to_diff_dict() | {"model_type": config.model_type}, sort_keys=True)
        transform = ImageTransform(as_size(image_size), as_triple(mean), as_triple(std))
        self.asked = self.detector = Detector(name if weights == "pretrained" else None, fields, transform)
        self.threshold, self.overlap, self.margin, self.least = threshold, overlap, margin, least

    def propose(self, picture: Picture) -> Sequence[Box]:
        return self.chosen(*self.asked(picture))

    def chosen(self, boxes: Float[Tensor, "q 4"], scores: Float[Tensor, "q"]) -> Sequence[Box]:
        """The crops of a picture in which a detector found these boxes."""
        crops = as_boxes(even_windows(self.regions, (ASSUMED,)))
        sure = (scores >= self.threshold) & (areas(boxes) > 0)
        if sure.any():
            boxes, scores = boxes[sure], scores[sure]
            places, clear = suppressed(boxes[None], scores[None], self.overlap, self.regions)
            found = [box for box, first in zip(as_boxes(boxes[places[0]]), clear[0].tolist(), strict=True) if first]
            crops[: len(found)] = [self._grown(box) for box in found]
        return crops

    def _grown(self, box: Box) -> Box:
        """A box with its margin as a square of shares of the picture, moved into the picture where it leaves it."""
        top, left, bottom, right = box
        longer = max(bottom - top, right - left)
        side = min(max(longer * (1 + 2 * self.margin), self.least), 1.0)
        down, across = (min(max((a + b - side) / 2, 0.0), 1 - side) for a, b in ((top, bottom), (left, right)))
        return down, across, min(down + side, 1.0), min(across + side, 1.0)
