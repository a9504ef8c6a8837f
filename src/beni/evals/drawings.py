"""Drawings to be laid over a picture: which of its patches are kept, and where an answer looks.

A drawing is transparent where nothing is to be told, so a report holds the picture itself once, and each drawing as a
few hundred bytes. What tokens stand for is drawn as rectangles around their places: a patch of the encoder, or a cell
of the grid that the tokens are on. Views of one size are drawn together, each at its place in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL.Image import Image as Picture

from beni.model.modeling import BeniForConditionalGeneration
from beni.model.pictures import ATTENTION, KEPT, SEEN
from beni.stage import Picture as Values
from beni.types import ImageLayout, TokenSpec
from beni.views.base import WHOLE, Box, Views
from beni.views.tiled import TiledViews

SMALLEST = 192
"""Pixels that the longer side of a drawing has at least: patches of small pictures need some each."""
DARK = 200
"""Opacity, of 255, of the black over what is not kept."""
HEAT = ((20, 20, 120), (150, 30, 140), (240, 90, 40), (255, 230, 70))
"""Colours from 0 to the highest value, at equal distances."""
LINE = 2
"""Pixels of a crop's outline."""
CROPS = "views/crops"
"""Name of the drawing of where crops lie."""
GLOW = 165
"""Opacity of them, of 255."""


@dataclass(frozen=True)
class Drawing:
    """Something to be laid over a picture.

    Attributes:
        name: ``<stage>/<name>`` of what a stage has left, or ``attention``.
        part: which views it is of, where there are views of several sizes; else empty.
        note: what it shows, in numbers.
        overlay: of the picture's shape; transparent where nothing is told.
    """

    name: str
    part: str
    note: str
    overlay: Picture


@dataclass(frozen=True)
class Region:
    """Values of the tokens of one view, at its place in the picture.

    Attributes:
        cell: (height, width) of what each token stands for, as shares of the view.
        tokens: that came into the stage; those that are drawn may be fewer.
    """

    box: Box
    values: Values
    cell: tuple[float, float]
    tokens: int


@dataclass(frozen=True)
class Artist:
    """Draws what a model has left of an image.

    Attributes:
        views: of the model.
        specs: layout of an image -> what its visual tokens are behind each stage, row by row.
        patch: (height, width) of a patch of the encoder in pixels.
    """

    views: Views
    specs: Callable[[ImageLayout], Mapping[str, Sequence[TokenSpec]]]
    patch: tuple[float, float]

    def of_stage(
        self, name: str, layout: ImageLayout, left: Sequence[Values], size: tuple[int, int]
    ) -> Iterator[Drawing]:
        """What a stage has left of the views of an image: one drawing for all views of one size, the largest first.

        Args:
            size: (width, height) of the picture that is drawn over.
        """
        places, rows, patches = self.views.places(layout), self.specs(layout)["views"], self.patches(layout)
        sizes: dict[tuple[float, float], list[Region]] = {}
        for values in left:
            box, grid = places[values.view], values.grid or patches[values.view]
            # what views keep is of the patches of the view, what the stages behind them keep of its row
            came = math.prod(grid) if name.startswith("views/") else rows[values.view].n
            region = Region(box, values, (1 / grid[0], 1 / grid[1]), came)
            sizes.setdefault(_extent(box), []).append(region)
        for extent in sorted(sizes, reverse=True):
            part = "" if len({_extent(box) for box in places}) == 1 else _part(extent)
            yield _drawn(name, part, sizes[extent], size)

    def of_view(self, name: str, layout: ImageLayout, values: Values) -> tuple[int, Drawing]:
        """What a stage has left of one row: the number of the view that it is drawn over, and the drawing. A row of
        several views is drawn over one that shows the whole picture.
        """
        view, patches = values.view, self.patches(layout)[values.view]
        if isinstance(self.views, TiledViews) and self.views.join:
            view = list(self.views.boxes(layout)).index(WHOLE)
        rows, columns = values.grid or patches
        came = rows * columns if name.startswith("views/") else self.specs(layout)["views"][values.view].n
        region = Region(WHOLE, values, (1 / rows, 1 / columns), came)
        height, width = layout.views[view]
        return view, _drawn(name, "", [region], (width, height))

    def attention(self, layout: ImageLayout, values: Values, size: tuple[int, int]) -> Drawing | None:
        """What an answer attends to; None where the tokens have no places of their own, as those of a perceiver.

        Args:
            values: of tokens with places in the whole picture.
        """
        places = self.views.places(layout)
        if len({tuple(place) for place in values.yx.tolist()}) <= len(places):
            return None
        row = max(range(len(places)), key=lambda i: _extent(places[i]))
        (tall, wide), own = _extent(places[row]), self.specs(layout)["connector"][row].grid
        grid = own or self.patches(layout)[row]
        field = _summed([Region(WHOLE, values, (tall / grid[0], wide / grid[1]), len(values.values))], size)
        most = float(values.values.max())
        return Drawing(ATTENTION, "", f"brightest token: {most:.2%}", _heat(field / (field.max() or 1.0)))

    def patches(self, layout: ImageLayout) -> list[tuple[int, int]]:
        """(rows, columns) of patches of the encoder in each row behind the views."""
        grids = [(round(height / self.patch[0]), round(width / self.patch[1])) for height, width in layout.views]
        if len(self.views.places(layout)) == len(grids):
            return grids
        return [(grids[0][0] * layout.tiles[0], grids[0][1] * layout.tiles[1])]  # joined: those of the smallest views


def outlined(layout: ImageLayout, size: tuple[int, int]) -> Drawing | None:
    """The outlines of crops whose places depend on the pixels; None where views lie as their numbers say.

    Args:
        size: (width, height) of the picture that is drawn over.
    """
    crops = [box for box in layout.boxes if box != WHOLE]
    if not layout.boxes:
        return None
    inked = np.zeros(_shape(size), dtype=np.uint8)
    for crop in crops:
        rows, columns = _pixels(crop, inked.shape)
        edge = np.ones_like(inked[rows, columns])
        edge[LINE:-LINE, LINE:-LINE] = 0
        inked[rows, columns] = np.maximum(inked[rows, columns], edge)
    return Drawing(CROPS, "", f"{len(crops)} crops", _palette(inked, lambda level: (*HEAT[-1], 255 * (level == 1))))


def artist_of(model: BeniForConditionalGeneration) -> Artist:
    """Who draws what a model leaves."""
    (tall, wide), (rows, columns) = model.vision.transform.tile, model.vision.patches
    return Artist(model.views, model.row_specs, (tall / rows, wide / columns))


def _drawn(name: str, part: str, regions: Sequence[Region], size: tuple[int, int]) -> Drawing:
    return (_kept if name in (KEPT, SEEN) else _left)(name, part, regions, size)


def _kept(name: str, part: str, regions: Sequence[Region], size: tuple[int, int]) -> Drawing:
    """Dark where nothing is left, and the darker the less a gate is open."""
    values = np.concatenate([region.values.values.numpy() for region in regions])
    note = f"{len(values)} of {sum(region.tokens for region in regions)} tokens"
    if len(values) and values.min() < 1:
        note += f", open to {values.mean():.0%} on average"
    seen, field = _inside(regions, size), _highest(regions, size)
    opacity = np.where(seen, DARK * (1 - field.clip(0, 1)), 0)
    return Drawing(name, part, note, _palette(opacity.round().astype(np.uint8), lambda level: (0, 0, 0, level)))


def _left(name: str, part: str, regions: Sequence[Region], size: tuple[int, int]) -> Drawing:
    values = np.concatenate([region.values.values.numpy() for region in regions])
    note = f"{values.min():.2g} to {values.max():.2g}" if len(values) else "of no token"
    return Drawing(name, part, note, _heat(_highest(regions, size).clip(0, 1), _inside(regions, size)))


def _heat(field: np.ndarray, seen: np.ndarray | None = None) -> Picture:
    """Values in [0, 1] in colours that go with their square roots: one token that takes most would hide the others."""
    levels = 1 + (254 * np.sqrt(field)).round().astype(np.uint8)
    return _palette(levels if seen is None else np.where(seen, levels, 0).astype(np.uint8), _colour)


def _colour(level: int) -> tuple[int, int, int, int]:
    """The colour and opacity of a level: 1 for the lowest value to 255 for the highest, 0 where there is none."""
    at = max(0, level - 1) / 254 * (len(HEAT) - 1)
    i = min(int(at), len(HEAT) - 2)
    red, green, blue = (round(a + (b - a) * (at - i)) for a, b in zip(HEAT[i], HEAT[i + 1], strict=True))
    return red, green, blue, GLOW if level else 0


def _palette(levels: np.ndarray, colour: Callable[[int], tuple[int, int, int, int]]) -> Picture:
    """Numbers from 0 to 255 as a picture in those colours, which keeps a PNG small."""
    colours = [colour(level) for level in range(256)]
    picture = PILImage.fromarray(levels, "L")
    picture.putpalette([part for entry in colours for part in entry[:3]])
    picture.info["transparency"] = bytes(entry[3] for entry in colours)
    return picture


def _highest(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """The highest value at each pixel; 0 where no token stands."""
    field = np.zeros(_shape(size))
    for value, where in _cells(regions, field.shape):
        field[where] = np.maximum(field[where], value)
    return field


def _summed(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """The sum of the values at each pixel."""
    field = np.zeros(_shape(size))
    for value, where in _cells(regions, field.shape):
        field[where] += value
    return field


def _cells(regions: Sequence[Region], shape: tuple[int, ...]) -> Iterator[tuple[float, tuple[slice, slice]]]:
    """Each value, and the pixels of its token."""
    for region in regions:
        top, left, bottom, right = region.box
        for value, (y, x) in zip(region.values.values.tolist(), region.values.yx.tolist(), strict=True):
            above, below = (top + (y + side * region.cell[0] / 2) * (bottom - top) for side in (-1, 1))
            before, behind = (left + (x + side * region.cell[1] / 2) * (right - left) for side in (-1, 1))
            yield value, _pixels((above, before, below, behind), shape)


def _inside(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """True at the pixels of the views."""
    inside = np.zeros(_shape(size), dtype=bool)
    for region in regions:
        inside[_pixels(region.box, inside.shape)] = True
    return inside


def _pixels(box: Box, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the pixels in a box; neighbours share a border, and no pixel."""
    top, left, bottom, right = (
        round(min(max(place, 0.0), 1.0) * side + 1e-4) for place, side in zip(box, (*shape, *shape), strict=True)
    )
    return slice(top, bottom), slice(left, right)


def _shape(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a drawing over a picture of (width, height)."""
    times = -(-SMALLEST // max(size))
    return size[1] * times, size[0] * times


def _extent(box: Box) -> tuple[float, float]:
    """Height and width, so that equal ones are equal."""
    top, left, bottom, right = box
    return round(bottom - top, 6), round(right - left, 6)


def _part(extent: tuple[float, float]) -> str:
    """Views of that height and width, in words."""
    return "whole picture" if extent == (1.0, 1.0) else f"views of {extent[0]:.0%} x {extent[1]:.0%}"
