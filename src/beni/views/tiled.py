"""What all views that make several of a picture share: one row a view, or the views of an image joined in one row.

Joined, a resampler behind them sees all views of an image at once (``join=true``: any number of crops into a fixed
number of latents); a learned vector for each view, zero at first, tells them apart, and places are those in the whole
picture. Apart, each view is resampled for itself, and ``arrange`` puts the results in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from PIL import Image as PILImage
from PIL.Image import Image as Picture
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.pixels import PictureTransform
from beni.nn.rows import images_of, real_tokens
from beni.stage import Drawn, StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE, Box, Views
from beni.views.lines import draw


class SeveralViews(Views):
    """``(k, n, d) -> (k, n, d)``, or ``-> (i, ~, d)`` where the views of an image are joined.

    Args:
        tokens: spec of the tokens of one view.
        most: views that an image may become.
        join: put the views of an image into one row.
        newline: room for a learned vector of the llm's width that ends lines; None without.
        sets: tokens of the llm's width that come along with each for its deeper layers (``VisualTokens.deep``).

    Raises:
        CompositionError: E-STACK when views are to be joined whose encoders are kept apart.
    """

    def __init__(
        self, tokens: TokenSpec, most: int, join: bool, newline: nn.Parameter | None = None, sets: int = 0
    ) -> None:
        super().__init__()
        if join and tokens.sources:
            raise CompositionError(
                "E-STACK",
                "views.join=true, but the tokens of several encoders come side by side and are to stay apart",
                groups=("vision", "views"),
                fix="set views.join=false or vision.combine=channels",
            )
        self.join, self.most, self.sets = join, most, sets
        self.view = nn.Parameter(torch.empty(most, tokens.dim)) if join else None
        self.newline = newline

    @abstractmethod
    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        """Where each view lies in its picture."""

    @abstractmethod
    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        """The rows of an image's views after the connector, ``(k, n, d)``, in the order of the text, ``(1, m, d)``."""

    @abstractmethod
    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        """What stands for such rows in the text.

        Raises:
            CompositionError: when they cannot be arranged.
        """

    @abstractmethod
    def around(self) -> tuple[str, str]:
        """Texts before and after an image whose views are joined; empty for none."""

    def places(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE] if self.join else self.boxes(layout)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if not self.join:
            return tokens
        layouts = context.layouts
        return images_of(tokens, [len(one.views) for one in layouts], lambda i, rows: self._one(layouts[i], rows))

    def markup(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        if not self.join:
            return self.arranged(layout, rows)
        before, after = self.around()
        return tuple(part for part in (before, rows[0].n, after) if part != "")

    def overview(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        if self.join:
            return self.markup(layout, rows)
        n = sum(row.n for row, whole in zip(rows, self._whole(layout), strict=True) if whole)
        if not n:
            raise CompositionError(
                "E-STACK",
                f"only tokens of the whole picture are to stand in the text, and a picture in {layout.tiles[0]}x"
                f"{layout.tiles[1]} tiles has no view of it",
                groups=("views", "fusion"),
                fix="set views.thumbnail=true, views=idefics3 or fusion=inline",
            )
        before, after = self.around()
        return tuple(part for part in (before, n, after) if part != "")

    def finished(self, tokens: TokenSpec) -> TokenSpec:
        if self.join:
            return tokens
        return replace(tokens, parted=True, deep=self.sets * tokens.dim, sources=())

    def finish(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if self.join:
            return tokens
        layouts = context.layouts

        def arranged(i: int, rows: VisualTokens) -> VisualTokens:
            whole = torch.tensor(self._whole(layouts[i]), device=rows.mask.device)[:, None].expand_as(rows.mask)
            return self.arrange(layouts[i], replace(self._placed(layouts[i], rows), whole=whole))

        return images_of(tokens, [len(one.views) for one in layouts], arranged)

    def init_weights(self) -> None:
        if self.view is not None:
            nn.init.zeros_(self.view)
        draw(self.newline)
        for part in self.children():
            cast(Drawn, part).init_weights()

    def _joined(self, views: Sequence[TokenSpec]) -> TokenSpec:
        return replace(views[0], n=sum(view.n for view in views), grid=None)

    def _one(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        if self.view is None:
            raise ValueError("views that stay apart were joined")
        x = rows.x + self.view[: len(rows.x), None].to(rows.x.dtype)
        return real_tokens(replace(self._placed(layout, rows), x=x))

    def _whole(self, layout: ImageLayout) -> list[bool]:
        """Whether each view is of the whole picture."""
        return [box == WHOLE for box in self.boxes(layout)]

    def _placed(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        """The rows of an image's views with places in the whole picture."""
        top, left, bottom, right = rows.yx.new_tensor(self.boxes(layout)).T[:, :, None, None].unbind()
        yx = torch.cat([top + rows.yx[..., :1] * (bottom - top), left + rows.yx[..., 1:] * (right - left)], -1)
        return replace(rows, yx=yx.clamp(0, 1))


class TiledViews(SeveralViews):
    """Views whose tokens are all kept, each in the shape that the encoder gives it."""

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return self._joined([tokens] * self.most) if self.join else tokens

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        return [self._joined(views)] if self.join else list(views)


def tile_boxes(tiles: tuple[int, int]) -> list[Box]:
    """The places of (rows, columns) equal tiles of the whole picture, in reading order."""
    rows, columns = tiles
    return [
        (row / rows, column / columns, (row + 1) / rows, (column + 1) / columns)
        for row in range(rows)
        for column in range(columns)
    ]


def best_canvas(size: tuple[int, int], canvases: Sequence[tuple[int, int]], tile: tuple[int, int]) -> tuple[int, int]:
    """The canvas, as (rows, columns) of tiles, that shows most of a picture, and of these the least wasteful."""
    height, width = size

    def fitness(canvas: tuple[int, int]) -> tuple[int, int]:
        tall, wide = canvas[0] * tile[0], canvas[1] * tile[1]
        scale = min(wide / width, tall / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        return seen, seen - tall * wide

    return max(canvases, key=fitness)


def cut(picture: Picture, tile: tuple[int, int]) -> Iterator[Picture]:
    """A picture whose sides ``tile`` (height, width) divides -> its tiles in reading order."""
    height, width = tile
    for top in range(0, picture.height, height):
        for left in range(0, picture.width, width):
            yield picture.crop((left, top, left + width, top + height))


def squashed(
    picture: Picture, size: tuple[int, int], filter: PILImage.Resampling = PILImage.Resampling.BICUBIC
) -> Picture:
    """The picture at (height, width), whatever its shape was."""
    height, width = size
    return picture if (picture.height, picture.width) == size else picture.resize((width, height), filter)


def transformed(pictures: Sequence[Picture], transform: PictureTransform) -> list[Tensor]:
    """Pictures of the encoder's own size to pixels."""
    return [transform(picture) for picture in pictures]
