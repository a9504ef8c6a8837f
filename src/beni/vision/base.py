"""What beni asks of a vision encoder. Numbers are probed by a dry run on the meta device, never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from beni.nn.pixels import PictureTransform
from beni.types import TokenSpec, VisualTokens


class VisionEncoder(nn.Module, ABC):
    """Pixels to visual tokens. Subclasses are final and load no weights while they are constructed."""

    @property
    @abstractmethod
    def transform(self) -> PictureTransform:
        """How a picture becomes this encoder's pixels."""

    @abstractmethod
    def spec(self, size: tuple[int, int] | None = None) -> TokenSpec:
        """Tokens, width and grid of one view.

        Args:
            size: (height, width) in pixels of the view; the configured one when None.

        Raises:
            CompositionError: E-RES when the encoder does not take that size.
        """

    @property
    @abstractmethod
    def patches(self) -> tuple[int, int]:
        """(rows, columns) of patches in one view of the configured size, also where its tokens form no grid."""

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "i 3 height width"]) -> VisualTokens:
        """``(i, 3, height, width) -> (i, n, d)``, the patches in reading order."""

    @abstractmethod
    def dry_run(self) -> AbstractContextManager[None]:
        """Around calls on the meta device: nothing of them is left behind in caches of the encoder's classes."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated layers, in order: the units of sharding and of activation checkpointing."""

    @abstractmethod
    def load_pretrained(self) -> None:
        """Replace the weights by the pretrained ones.

        Raises:
            WeightsError: when they cannot be had.
        """

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """The YAML values that ``save_pretrained`` must add so that this encoder can be rebuilt without a hub."""
