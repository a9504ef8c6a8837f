"""Fusion: how visual tokens reach the llm."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float
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

    @abstractmethod
    def init_weights(self) -> None:
        """Draw every parameter from torch's global generator (the builder puts a named stream there)."""
