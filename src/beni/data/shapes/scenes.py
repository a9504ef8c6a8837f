"""Drawn scenes: a few coloured shapes, each in a ninth of its own, on a light, slightly noisy background.

Balance. A reader who does not see the picture must stay at chance, so for each question *text* the answer is uniform
over its choices (``questions.py``). Scenes do their part: they are exchangeable in the colours, in the shapes and
under mirroring; the number of shapes is uniform over ``TOTALS``; and each scene is drawn around one *counted* value
("circle", say) whose multiplicity is uniform over ``COUNTS``. Only that value and the total are ever counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Attribute = Literal["shape", "colour"]

COLOURS: Final[dict[str, RGB]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (45, 85, 215),
    "yellow": (238, 208, 40),
    "purple": (145, 55, 185),
    "black": (35, 35, 35),
}
"""Colour names and their mean RGB value; a drawn shape is jittered around it."""

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "star", "cross")
COLOUR_NAMES: Final[tuple[str, ...]] = tuple(COLOURS)
VALUES: Final[dict[Attribute, tuple[str, ...]]] = {"shape": SHAPES, "colour": COLOUR_NAMES}

PLACES: Final[tuple[str, ...]] = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The ninths of a picture, row by row; each holds at most one shape."""
TOTALS: Final[tuple[int, ...]] = (2, 3, 4)
COUNTS: Final[tuple[int, ...]] = (1, 2, 3)

# Geometry, in fractions of the side of the picture.
_GRID: Final = 3  # cells a side; a shape lies anywhere inside one cell
_RADIUS: Final = (0.125, 0.155)

# Drawing.
_OVERSAMPLING: Final = 2
_TILT: Final = 0.1  # radians
_COLOUR_JITTER: Final = 12
_NOISE: Final = 4


class Item(NamedTuple):
    """A shape of a scene; ``x`` (rightwards), ``y`` (downwards) and ``radius`` in units of the side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float
    rgb: RGB

    @property
    def name(self) -> str:
        """Colour and shape, as in ``red circle``."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Which ninth of the picture the centre lies in."""
        return PLACES[3 * int(3 * self.y) + int(3 * self.x)]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, and the one attribute value that may be counted in it."""

    items: tuple[Item, ...]
    counted: tuple[Attribute, str]
    background: RGB
    noise_seed: int

    def having(self, attribute: Attribute, value: str) -> list[Item]:
        """The items whose shape or colour is ``value``."""
        return [item for item in self.items if getattr(item, attribute) == value]

    def names(self) -> set[str]:
        """The ``colour shape`` names that occur."""
        return {item.name for item in self.items}

    def render(self, size: int) -> Image.Image:
        """Draw the scene as an RGB picture of ``size`` by ``size`` pixels."""
        return rendered(self.items, self.background, self.noise_seed, size)

    @classmethod
    def draw(cls, rng: random.Random) -> Scene:
        """Draw a random scene; see the module's text on balance."""
        total = rng.choice(TOTALS)
        attribute: Attribute = rng.choice(("shape", "colour"))
        value = rng.choice(VALUES[attribute])
        counted = _counted_labels(rng, total, VALUES[attribute], value)
        other: Attribute = "colour" if attribute == "shape" else "shape"
        distinct = rng.random() < 0.5
        free = rng.sample(VALUES[other], total) if distinct else rng.choices(VALUES[other], k=total)
        shapes, colours = (counted, free) if attribute == "shape" else (free, counted)
        items = tuple(
            Item(shape, colour, x, y, radius, rng.uniform(-_TILT, _TILT), jittered(rng, COLOURS[colour]))
            for shape, colour, (x, y, radius) in zip(shapes, colours, _places(rng, total), strict=True)
        )
        return cls(items, (attribute, value), background_of(rng), rng.getrandbits(32))


def rendered(items: Iterable[Item], background: RGB, noise_seed: int, size: int) -> Image.Image:
    """Shapes on a slightly noisy background, as an RGB picture of ``size`` by ``size`` pixels."""
    side = size * _OVERSAMPLING
    canvas = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(canvas)
    for item in items:
        _draw(draw, item, side)
    pixels = np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.int16)
    raw = random.Random(noise_seed).randbytes(size * size)
    noise = np.frombuffer(raw, dtype=np.uint8).reshape(size, size, 1) % (2 * _NOISE + 1)
    noisy = pixels + (noise.astype(np.int16) - _NOISE)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def background_of(rng: random.Random) -> RGB:
    """A light colour, nearly grey."""
    grey = rng.randint(205, 245)
    red, green, blue = (min(255, grey + rng.randint(-8, 8)) for _ in range(3))
    return red, green, blue


def _counted_labels(rng: random.Random, total: int, values: Sequence[str], value: str) -> list[str]:
    """``total`` labels in random order, ``value`` among them one, two or three times.

    Two shapes cannot hold three of a kind; the weights for larger totals make up for it, so that the multiplicity is
    exactly uniform over ``COUNTS`` for uniform ``TOTALS``: (1/3)(1/2) + (2/3)(1/4) = 1/3 and (2/3)(1/2) = 1/3.
    """
    times = rng.choice((1, 2)) if total == 2 else rng.choice((1, 2, 3, 3))
    others = [v for v in values if v != value]
    labels = [value] * times + rng.choices(others, k=total - times)
    rng.shuffle(labels)
    return labels


def _places(rng: random.Random, total: int) -> list[tuple[float, float, float]]:
    """Centres and radii of ``total`` discs, each inside a cell of its own of a square grid."""
    places = []
    for cell in rng.sample(range(_GRID * _GRID), total):
        radius = rng.uniform(*_RADIUS)
        slack = 0.5 / _GRID - radius
        row, column = divmod(cell, _GRID)
        x = (column + 0.5) / _GRID + rng.uniform(-slack, slack)
        y = (row + 0.5) / _GRID + rng.uniform(-slack, slack)
        places.append((x, y, radius))
    return places


def jittered(rng: random.Random, rgb: RGB) -> RGB:
    """A colour near ``rgb``."""
    red, green, blue = (max(0, min(255, channel + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for channel in rgb)
    return red, green, blue


def _ring(*radii: float, turn: float = 0.0, count: int) -> tuple[tuple[float, float], ...]:
    """``count`` points at equal angles, first upwards, cycling through ``radii``."""
    return tuple(
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i in range(count)
        for a in (turn + 2 * math.pi * i / count,)
    )


_ARM: Final = 0.3
_OUTLINES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "square": _ring(1.1, turn=math.pi / 4, count=4),
    "triangle": _ring(1.1, count=3),
    "star": _ring(1.1, 0.45, count=10),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip
"""Outlines in units of the radius; a circle has none and is drawn as an ellipse."""


def _draw(draw: ImageDraw.ImageDraw, item: Item, side: int) -> None:
    x, y, radius = item.x * side, item.y * side, item.radius * side
    if item.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=item.rgb)
        return
    cos, sin = radius * math.cos(item.tilt), radius * math.sin(item.tilt)
    outline = [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in _OUTLINES[item.shape]]
    draw.polygon(outline, fill=item.rgb)
