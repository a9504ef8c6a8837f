"""Views: how one picture becomes one or several encoder inputs, and how their tokens are put together again.

The half that runs in the data loader (``plan``, ``split``, ``markup``) is a pure function of the picture's size, so the
length of a sample is known before a pixel is decoded. The half that runs in the model comes in two steps: ``forward``
right after the encoder, on rows that are views, and ``finish`` after the connector, on rows of the llm's width.

Views move, average and add tokens. They have no matrix product, convolution or attention, and so no FLOPs: what they
cost is not counted.

A constructor may ask, before ``*``, for ``tokens`` (of one view), ``dim_out`` (the llm's width), ``tile`` (height and
width in pixels of the picture that the encoder wants) and ``patches`` (rows and columns of patches it makes of it).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from PIL.Image import Image as Picture
from torch import Tensor

from beni.nn.pixels import PictureTransform
from beni.stage import Stage, StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens

Box = tuple[float, float, float, float]
"""(top, left, bottom, right) of a view in its picture, each in [0, 1] where nothing was added around it."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Views(Stage):
    """A stage with a half that runs in the data loader. Subclasses are final."""

    @abstractmethod
    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """(height, width) of a picture in pixels -> how it is cut. Pure."""

    @abstractmethod
    def extremes(self) -> Sequence[ImageLayout]:
        """Layouts that show every kind of view and of row there can be, for checks before anything is built."""

    @abstractmethod
    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        """A decoded picture -> the pixels ``(3, height, width)`` of its views, of the sizes in ``layout.views``."""

    @abstractmethod
    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        """The specs of an image's views -> those of the rows that the stages after ``forward`` see of it: one a view,
        or one for all where they are joined.
        """

    @abstractmethod
    def places(self, layout: ImageLayout) -> Sequence[Box]:
        """Where each of those rows lies in its picture."""

    @abstractmethod
    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        """What stands in the text for an image whose rows have these specs after the connector.

        Raises:
            CompositionError: when ``finish`` could not work on such rows.
        """

    @abstractmethod
    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        """What stands in the text for an image of whose rows only those of the whole picture do.

        Raises:
            CompositionError: when there is no such row.
        """

    @abstractmethod
    def finished(self, tokens: TokenSpec) -> TokenSpec:
        """The spec of a row after the connector -> what comes along with the tokens of an image behind ``finish``."""

    @abstractmethod
    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """Rows after the connector -> one row an image, with as many real tokens as ``markup`` says, in its order, and
        with places in the whole picture.
        """
