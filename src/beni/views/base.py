"""Views: how one picture becomes one or several encoder inputs, and how their tokens are put together again.

The half that runs in the data loader (``plan``, ``split``, ``markup``) is a pure function of the picture's size, so the
length of a sample is known before a pixel is decoded. The half that runs in the model comes in two steps: ``forward``
right after the encoder, on rows that are views, and ``finish`` after the connector, on rows of the llm's width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from PIL.Image import Image as Picture
from torch import Tensor

from beni.stage import Stage, StageContext, TokenSpec
from beni.types import ImageLayout, Markup, VisualTokens


class Views(Stage):
    """A stage with a half that runs in the data loader. Subclasses are final."""

    @abstractmethod
    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """(height, width) of a picture in pixels -> how it is cut. Pure."""

    @abstractmethod
    def split(self, picture: Picture, layout: ImageLayout, transform: Callable[[Picture], Tensor]) -> list[Tensor]:
        """A decoded picture -> the pixels ``(3, height, width)`` of its views, ``layout.views`` of them."""

    @abstractmethod
    def rows(self, layout: ImageLayout) -> int:
        """Rows that the stages after ``forward`` see of such an image: its views, or 1 where they are joined."""

    @abstractmethod
    def markup(self, layout: ImageLayout, tokens: TokenSpec) -> Markup:
        """What stands in the text for an image whose rows are ``tokens`` after the connector."""

    @abstractmethod
    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """Rows after the connector -> one row an image, with as many real tokens as ``markup`` says, in its order."""
