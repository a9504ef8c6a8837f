"""Fusion: how visual tokens reach the llm."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from beni.types import VisualTokens


class Fusion(nn.Module, ABC):
    """Joins text embeddings and visual tokens. Subclasses are final."""

    @abstractmethod
    def placeholders(self, visual_tokens: int) -> int:
        """Positions of the llm's sequence that so many visual tokens of one image take."""

    @abstractmethod
    def forward(
        self, embeds: Float[Tensor, "b t d"], is_image: Bool[Tensor, "b t"], visual: VisualTokens | None
    ) -> Float[Tensor, "b t d"]:
        """Text embeddings, where the placeholders are, and the visual tokens in reading order."""

    @property
    @abstractmethod
    def sees_ahead(self) -> bool:
        """Whether some positions attend to later ones, so that ``blocks`` must be asked."""

    @abstractmethod
    def blocks(
        self, images: Int[Tensor, "t"], asked: Bool[Tensor, "t"], cu_seqlens: Int[Tensor, "s_plus_1"]
    ) -> Int[Tensor, "t"]:
        """For a packed row: positions of one segment with the same number from 0 on see each other; -1 for the others.

        Args:
            images: number of the image of each placeholder; -1 elsewhere.
            asked: positions before the first supervised one of their segment.
            cu_seqlens: borders of the segments.
        """

    @property
    @abstractmethod
    def calibrates(self) -> bool:
        """Whether it measures something on the first batch of a run."""

    @abstractmethod
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        """Measures what it needs on text embeddings and visual tokens of the first batch; kept in a buffer."""

    @abstractmethod
    def init_weights(self) -> None:
        """Draw every parameter from torch's global generator (the builder puts a named stream there)."""
