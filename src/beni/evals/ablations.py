"""Ablations: what is done to the pictures of held-out samples, or to their visual tokens, before they are scored.

Pictures keep their size, so text and number of visual tokens stay what they are, and only what is seen differs. What is
drawn at random is drawn from a stream of the picture's own: it is the same in every run and on every rank. To add one,
add its builder to ``FURTHER``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL.Image import Image as Picture

from beni.data.images import blank_like, decode
from beni.data.sample import Sample
from beni.nn.streams import numpy_stream

TILES = 4
"""Rows and columns that ``shuffled`` cuts a picture into."""
DROPPED = 0.5
"""Share of the visual tokens of each picture that ``dropped`` hides from the llm."""


@dataclass(frozen=True)
class Place:
    """Where a picture stands.

    Attributes:
        sample: id of its sample.
        number: of the picture within its sample, from 0 on.
    """

    sample: str
    number: int


Change = Callable[[Picture, Place], Picture | None]
"""A decoded picture and its place to the picture that the model is shown; None where there is none to show."""


def _as_it_is(picture: Picture, place: Place) -> Picture:
    return picture


@dataclass(frozen=True)
class Ablation:
    """A change of what the model sees.

    Attributes:
        name: as ``variant`` in scores.jsonl.
        change: of pictures.
        dropped: share of the visual tokens of each picture that is hidden from the llm, in [0, 1).
    """

    name: str
    change: Change = _as_it_is
    dropped: float = 0.0

    @property
    def suffix(self) -> str:
        """Behind the names of metrics and fields: ``eval/accuracy_blank``; empty for pictures as they are."""
        return "" if self.name == "true" else f"_{self.name}"

    def of(self, sample: Sample, pictures: Sequence[Picture]) -> list[Picture] | None:
        """What is shown of a sample's decoded pictures; None where there is nothing to show for one of them."""
        changed = [self.change(picture, Place(sample.id, number)) for number, picture in enumerate(pictures)]
        shown = [picture for picture in changed if picture is not None]
        return shown if len(shown) == len(changed) else None


def _blank(picture: Picture, place: Place) -> Picture:
    return blank_like(picture)


def shuffled(picture: Picture, place: Place) -> Picture:
    """A picture of the same size whose tiles have changed places, each with another: all that they show is there, and
    how it lies to one another is lost. Pixels beyond the last whole tile, at most ``TILES - 1`` rows and columns, stay.
    """
    pixels = np.asarray(picture.convert("RGB"))
    rows, columns = min(TILES, pixels.shape[0]), min(TILES, pixels.shape[1])
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    corners = [(row * height, column * width) for row in range(rows) for column in range(columns)]
    order = _stream("shuffled", place).permutation(len(corners))
    mixed = pixels.copy()
    for source, target in zip(order, np.roll(order, 1), strict=True):  # one cycle: no tile stays where it was
        (y, x), (to_y, to_x) = corners[source], corners[target]
        mixed[to_y : to_y + height, to_x : to_x + width] = pixels[y : y + height, x : x + width]
    return PILImage.fromarray(mixed)


def noise(picture: Picture, place: Place) -> Picture:
    """Pixels of the same number, each channel of each drawn uniformly from 0 to 255: nothing of the picture is left but
    its size.
    """
    shape = (picture.height, picture.width, 3)
    return PILImage.fromarray(_stream("noise", place).integers(0, 256, shape, dtype=np.uint8))


def swapped(samples: Sequence[Sample]) -> Ablation:
    """In the place of each picture that of another sample, stretched to its size.

    Each picture is shown once. None is shown to a sample of its own cluster, unless that cluster has more than half of
    all pictures; a single picture has no other, and a sample with it is not scored.
    """
    partner = partners(samples)

    def change(picture: Picture, place: Place) -> Picture | None:
        if (found := partner.get(place)) is None:
            return None
        sample, number = found
        return decode(samples[sample].images[number]).resize(picture.size, PILImage.Resampling.BICUBIC)

    return Ablation("swapped", change)


def partners(samples: Sequence[Sample]) -> dict[Place, tuple[int, int]]:
    """Place of each picture -> (number of the sample, number of the picture within it) of another one; empty where
    there are fewer than two pictures.

    A cluster is what ``Sample.cluster`` says, or else the picture's own key. With pictures in the order of their
    clusters, the one that stands as many further as the largest cluster has pictures is of another cluster.
    """
    found = [
        (sample.cluster or image.key, i, Place(sample.id, number))
        for i, sample in enumerate(samples)
        for number, image in enumerate(sample.images)
    ]
    if len(found) < 2:
        return {}
    mixed = [found[i] for i in numpy_stream(0, "eval.swapped").permutation(len(found))]
    ordered = sorted(mixed, key=lambda one: one[0])
    shift = max(Counter(cluster for cluster, _, _ in found).values()) % len(found) or 1
    return {
        place: (sample, other.number)
        for (_, _, place), (_, sample, other) in zip(ordered, ordered[shift:] + ordered[:shift], strict=True)
    }


def _stream(name: str, place: Place) -> np.random.Generator:
    return numpy_stream(0, f"eval.{name}", place.sample, place.number)


TRUE = Ablation("true")
BLANK = Ablation("blank", _blank)
"""A grey picture of the same size: what an answer owes to the question alone."""

ALWAYS = (TRUE, BLANK)
"""What every evaluation scores and every gallery shows, in this order."""

FURTHER: Mapping[str, Callable[[Sequence[Sample]], Ablation]] = {
    "shuffled": lambda samples: Ablation("shuffled", shuffled),
    "swapped": swapped,
    "noise": lambda samples: Ablation("noise", noise),
    "dropped": lambda samples: Ablation("dropped", dropped=DROPPED),
}
"""What ``eval.ablations`` adds to the last evaluation, by name: made for the samples that are scored."""
