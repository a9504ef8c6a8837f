"""From a decoded picture to an encoder's pixels: resizing and each encoder's own normalisation.

Pillow's resampling filters widen with the scale factor, so shrinking is antialiased; torch's ``interpolate`` is not by
default. Everything here runs in the loader's workers and returns one tensor per picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from beni.errors import ConfigError


def as_triple(values: Sequence[float]) -> tuple[float, float, float]:
    """Three channel values from YAML.

    Raises:
        ValueError: when there are not three.
    """
    red, green, blue = values
    return red, green, blue


def as_size(values: int | Sequence[int]) -> int | tuple[int, int]:
    """A side, or (height, width) from YAML.

    Raises:
        ConfigError: when a list has not two values.
    """
    if isinstance(values, int):
        return values
    if len(values) != 2:
        raise ConfigError(
            f"image_size={list(values)}, expected a side or [height, width] in pixels\n  fix: set vision.image_size=224"
        )
    return values[0], values[1]


class PictureTransform(ABC):
    """A decoded picture to pixels of one shape, whatever its size."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(height, width) of the pixels."""

    @property
    @abstractmethod
    def tile(self) -> tuple[int, int]:
        """(height, width) of the picture that becomes these pixels without being resampled."""

    @abstractmethod
    def at(self, size: tuple[int, int]) -> PictureTransform:
        """The transform for pictures of (height, width), which are squashed to it.

        Raises:
            CompositionError: E-RES when only one shape is possible.
        """

    @abstractmethod
    def __call__(self, picture: PILImage.Image) -> Float[Tensor, "3 height width"]:
        """Normalised pixels."""

    @abstractmethod
    def shown(self, pixels: Float[Tensor, "3 height width"]) -> PILImage.Image:
        """Normalised pixels -> the picture an encoder sees, for people to look at."""


@dataclass(frozen=True)
class ImageTransform(PictureTransform):
    """A decoded picture -> the pixels an encoder was trained on.

    Attributes:
        size: side of a square input in pixels, or (height, width).
        mean: per channel, of values in [0, 1].
        std: per channel.
        resize: ``squash`` to the size, ``pad`` the side that is short for it with the mean colour, or ``crop`` the
            largest centred piece of its shape.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["squash", "pad", "crop"] = "squash"

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def tile(self) -> tuple[int, int]:
        return self.shape

    def at(self, size: tuple[int, int]) -> ImageTransform:
        return replace(self, size=size, resize="squash")

    def __call__(self, picture: PILImage.Image) -> Float[Tensor, "3 height width"]:
        height, width = self.shape
        if picture.size == (width, height):
            pass
        elif self.resize == "squash":
            picture = picture.resize((width, height), PILImage.Resampling.BICUBIC)
        elif self.resize == "pad":
            colour = tuple(round(255 * m) for m in self.mean)
            if picture.width * height >= picture.height * width:  # as wide as there is room
                w, h = width, max(1, round(width * picture.height / picture.width))
            else:
                w, h = max(1, round(height * picture.width / picture.height)), height
            scaled = picture.resize((w, h), PILImage.Resampling.BICUBIC)
            picture = PILImage.new("RGB", (width, height), colour)
            picture.paste(scaled, ((width - w) // 2, (height - h) // 2))
        else:
            picture = ImageOps.fit(picture, (width, height), PILImage.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255.0).permute(2, 0, 1)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def shown(self, pixels: Float[Tensor, "3 height width"]) -> PILImage.Image:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        levels = 255 * (pixels * std[:, None, None] + mean[:, None, None])
        return PILImage.fromarray(levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
