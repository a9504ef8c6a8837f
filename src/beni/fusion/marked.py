"""Fusions in which an image takes one position of the text, which marks where it stands, and layers of the fusion's own
read its tokens: what they have in common.

The embedding of that position is learned and the same for all images. From there on an image is seen; text in front of
the first one, and a sample without any, are read by the llm as though nothing had been added.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.errors import DataError
from beni.fusion.base import Beside, Decoder, Fusion
from beni.fusion.media import Media
from beni.fusion.own_layers import OwnLayers
from beni.types import LayerVisitor, Markup, Sequence, VisualTokens


class MarkedFusion(Fusion):
    """The embeddings ``(b, t, d)`` with the learned one at images, and visitors around layers ``first``, ``first +
    every``, ... of the llm. Subclasses are final.

    Args:
        dim: width of the llm.
        sees: a position sees the ``latest`` image before it, or ``all`` before it.
    """

    def __init__(self, dim: int, every: int, first: int, sees: Literal["latest", "all"]) -> None:
        super().__init__()
        self.sees = sees
        self.mark = nn.Parameter(torch.empty(dim))
        self.blocks = OwnLayers(first, every)

    @abstractmethod
    def block(self, llm: Decoder) -> nn.Module:
        """The layer that it puts around one of the llm's, not drawn yet."""

    @abstractmethod
    def visitors(self, media: Media) -> Mapping[int, LayerVisitor]:
        """What stands around the llm's layers while it reads text with these images."""

    @abstractmethod
    def draw(self) -> None:
        """Draws the parameters of the blocks."""

    @property
    def looks_ahead(self) -> bool:
        return False

    @property
    def reads_gates(self) -> bool:
        return True

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset()

    @property
    def calibrates(self) -> bool:
        return False

    def markup(self, parts: Markup) -> Markup:
        return (1,)

    def install(self, llm: Decoder) -> None:
        self.blocks.install(llm, lambda: self.block(llm))

    def layers(self) -> list[nn.Module]:
        return list(self.blocks.values())

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        if visual is None:
            if bool(sequence.is_image.any()):
                raise DataError(f"E-COUNT: {int(sequence.is_image.sum())} image placeholders but no image was given")
            return sequence
        media = Media.of(sequence, visual, self.sees == "latest")
        marked = torch.where(sequence.is_image[..., None], self.mark.to(sequence.embeds.dtype), sequence.embeds)
        return replace(sequence, embeds=marked, visitors=self.visitors(media))

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        embeds = sequence.embeds + (self.mark.sum() * 0.0).to(sequence.embeds.dtype)
        return replace(sequence, embeds=embeds, visitors=self.visitors(Media.unseen(sequence, visual)))

    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        """Nothing is measured."""

    def init_weights(self) -> None:
        nn.init.normal_(self.mark, std=0.02)
        self.draw()
