"""Views: how one picture becomes one or several encoder inputs, and how their tokens are put together again.

The half that runs in the data loader is pure. How many views there are, of which sizes, and what stands for them in the
text (``plan``, ``markup``) follows from the picture's size, so the length of a sample is known before a pixel is
decoded; where views lie may depend on its pixels (``settled``, ``split``). The half that runs in the model comes in two
steps: ``forward`` right after the encoder, on rows that are views, and ``finish`` after the connector, on rows of the
llm's width.

Views move, average and add tokens. They have no matrix product, convolution or attention, and so no FLOPs; those that
choose what the encoder sees (``two_looks.py``) may have some for that, which are counted.

A constructor may ask, before ``*``, for ``tokens`` (of one view), ``dim_out`` (the llm's width), ``tile`` (height and
width in pixels of the picture that the encoder wants) and ``patches`` (rows and columns of patches it makes of it).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from PIL.Image import Image as Picture
from torch import Tensor

from beni.nn.pixels import PictureTransform
from beni.stage import Stage, StageContext
from beni.types import Box, ImageLayout, Markup, TokenSpec, VisualTokens

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Weighted(Protocol):
    """A model that is asked where views lie."""

    def fingerprint(self) -> str | None:
        """A hash of its weights."""
        ...

    def flops(self) -> int:
        """What it takes for one picture."""
        ...


class Views(Stage):
    """A stage with a half that runs in the data loader. Subclasses are final.

    Attributes:
        finder: a decoded picture -> where its views lie, the whole first; None where that follows from its size.
        detector: what ``finder`` asks, where it has weights.
        seen: how many patches of each view the encoder sees, None for all; empty where it sees all of every view.
    """

    finder: Callable[[Picture], Sequence[Box]] | None = None
    detector: Weighted | None = None
    seen: tuple[int | None, ...] = ()

    @abstractmethod
    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """(height, width) of a picture in pixels -> how it is cut. Pure."""

    @abstractmethod
    def extremes(self) -> Sequence[ImageLayout]:
        """Layouts that show every kind of view and of row there can be, for checks before anything is built."""

    def settled(self, picture: Picture, layout: ImageLayout) -> ImageLayout:
        """The layout of a decoded picture with the places of its views, where these depend on its pixels; where they do
        not, the layout as it was planned.
        """
        return layout if self.finder is None else replace(layout, boxes=tuple(self.finder(picture)))

    def fingerprint(self) -> str | None:
        """A hash of the weights by which ``settled`` finds where views lie; None where there are none."""
        return None if self.detector is None else self.detector.fingerprint()

    def loading_flops(self) -> int:
        """FLOPs that ``settled`` takes for one picture, in the loader: on no part's bill."""
        return 0 if self.detector is None else self.detector.flops()

    def sees(self, layout: ImageLayout) -> tuple[int | None, ...]:
        """How many patches of each view the encoder sees; None for all."""
        return self.seen or (None,) * len(layout.views)

    @abstractmethod
    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        """A decoded picture and its settled layout -> the pixels ``(3, height, width)`` of its views, of the sizes in
        ``layout.views``.
        """

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
