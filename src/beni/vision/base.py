"""What beni asks of a vision encoder. Numbers are probed by a dry run on the meta device, never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.pixels import PictureTransform
from beni.types import TokenSpec, VisualTokens

Service = Literal["attn", "keys", "keep"]
"""What an encoder does only where it is asked to while a model is built: see ``VisionEncoder.serve``."""


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
    def serve(self, services: frozenset[Service]) -> None:
        """Makes the encoder ready for more than features; called once, while a model is built, and costs nothing where
        nobody asks.

        Args:
            services: ``attn`` and ``keys``, the side channels that ``forward`` is to give (``VisualTokens.attn``,
                ``keys``), which ``spec`` then tells of; ``keep``, that ``forward`` will be told which patches to see.

        Raises:
            CompositionError: E-SIDE when it cannot give a side channel; E-KEEP when it cannot leave out patches.
        """

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], keep: Bool[Tensor, "i n"] | None = None
    ) -> VisualTokens:
        """``(i, 3, height, width) -> (i, n, d)``, the patches in reading order.

        Args:
            keep: True at the patches that the encoder shall see, at least one of each view, for an encoder that serves
                ``keep``; all of them when None. The result is then ``(i, m, d)``: of each view the tokens of the kept
                patches, in reading order and on no grid, padded to the view that keeps most. Positions are those that
                the patches have in the whole view. Where the text is laid out for all patches,
                ``VisualTokens.bounded`` says of how many of each view it has to lose.

        Raises:
            ValueError: when an encoder that does not serve ``keep`` is told of it, or a view keeps nothing.
        """

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


def refuse_services(services: frozenset[Service], who: str, why: str) -> None:
    """For an encoder that serves none.

    Raises:
        CompositionError: E-SIDE or E-KEEP when it was asked for one.
    """
    for service in sorted(services):
        raise no_service(service, who, why)


def no_service(service: Service, who: str, why: str) -> CompositionError:
    """The error of an encoder that cannot do what it was asked for.

    Args:
        who: names the encoder.
        why: what it lacks.
    """
    if service == "keep":
        return CompositionError(
            "E-KEEP",
            f"patches are to be left out before {who} sees them, but {why}",
            groups=("vision",),
            fix="set vision=clip, siglip or dinov2, or leave patches out behind the encoder (selector)",
        )
    return CompositionError(
        "E-SIDE",
        f"a part reads {service} of the encoder, which {who} does not give: {why}",
        groups=("vision",),
        fix="set vision=clip, siglip or dinov2",
    )


def refuse_keep(keep: Tensor | None, who: str) -> None:
    """For ``forward``.

    Raises:
        ValueError: when it is told to leave out patches.
    """
    if keep is not None:
        raise ValueError(f"{who} was told to leave out patches, which it was not made ready for (VisionEncoder.serve)")
