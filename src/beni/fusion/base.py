"""Fusion: how visual tokens reach the llm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.types import Heads, Markup, Sequence, VisualTokens

Beside = Literal["parts", "deep", "sources"]
"""What a fusion may read of images beside the tokens that take positions: see ``Fusion.reads_beside``."""


@runtime_checkable
class Decoder(Protocol):
    """What a fusion with layers of its own must know of the llm that it puts them into."""

    hidden_size: int

    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        ...

    def heads(self) -> Heads:
        """Sizes of its attention."""
        ...


class Fusion(nn.Module, ABC):
    """Joins text embeddings and visual tokens. Subclasses are final."""

    @abstractmethod
    def markup(self, parts: Markup) -> Markup:
        """What stands in the text for an image whose views would put ``parts`` there: the placeholders of its tokens,
        and text around them.
        """

    @abstractmethod
    def install(self, llm: Decoder) -> None:
        """Builds the layers that the fusion owns, as the llm's depth and width ask for; called once, before
        ``init_weights``.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The layers that it owns: sharded, computed again and counted like those of the llm."""

    @abstractmethod
    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        """The sequence as the llm is to read it.

        Args:
            sequence: text embeddings, with the places of images.
            visual: a row an image, in reading order; None without images.
            owners: the sample (segment or row) of each image; None where every sample has as many. With the borders of
                the sequence they tell packed samples, and the images of one, apart.

        What it costs is counted by a run on the meta device, where masks choose everything and nothing else has values.

        Raises:
            DataError: E-COUNT when placeholders and visual tokens differ in number.
        """

    @abstractmethod
    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        """The sequence of a rank without images, made to compute what others compute with images, on the tokens
        of a blank one that counts for nothing, so that all gather the same weights and reduce the same gradients.
        """

    @property
    @abstractmethod
    def looks_ahead(self) -> bool:
        """Whether some positions attend to later ones (``Sequence.blocks``), which not every llm can be taught."""

    @property
    @abstractmethod
    def reads_gates(self) -> bool:
        """Whether it attends to the tokens by itself, gates included; else the llm must add them to its attention."""

    @property
    @abstractmethod
    def reads_beside(self) -> frozenset[Beside]:
        """What it reads of images beside the tokens that take positions: those of views of ``parts`` of a picture,
        which then take none (``VisualTokens.whole``), what has come along for ``deep`` layers of the llm, and features
        of encoders (``sources``) that the tokens were made of.
        """

    @property
    @abstractmethod
    def reads_along(self) -> frozenset[int]:
        """Layers of the llm whose attention it reads along with (``LayerVisitor.within``)."""

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
