"""``data=shapes_cluttered``: a few coloured shapes among many grey ones, and questions about one of them.

Every cell of a grid holds a shape; all but a few are grey and say nothing. So most visual tokens of a picture are of no
use: what a selector is worth shows in how few of them suffice. No two coloured shapes of a picture have the same shape
or the same colour, so that each question means one of them, and its answer is uniform given its text.

Sample ``index`` of an epoch is a pure function of (seed, epoch, index); held-out samples have a stream of their own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from PIL import Image as PILImage

from beni.config.ranges import AtLeast, AtMost, Example
from beni.data.images import Image
from beni.data.metric import ExactAnswer
from beni.data.sample import Message, Sample
from beni.data.shapes.questions import Question
from beni.data.shapes.scenes import COLOUR_NAMES, COLOURS, RGB, SHAPES, Item, background_of, jittered, rendered
from beni.data.source import SingleSource
from beni.errors import DataError

HELDOUT_SEED = "heldout"
GREY = 60, 190
"""Darkest and lightest of the shapes that are of no use."""
SIZES = 0.34, 0.44
"""Radius of a shape, in cells."""


class ClutteredShapes(SingleSource):
    """Questions about the colour or the shape of one coloured shape among grey ones.

    Args:
        seed: of the run; training scenes depend on it, held-out ones do not.
        size: training samples of one epoch; every epoch draws new ones.
        heldout: held-out questions.
        image_size: side of the pictures in pixels.
        cells: rows and columns of shapes.
        objects: shapes with a colour.
        clutter: share of the other cells that hold a grey shape.
        questions: most questions in a training conversation, each about another of the coloured shapes.

    Raises:
        DataError: when the coloured shapes cannot all differ or have no cell each.
    """

    metric = ExactAnswer()
    varies = True

    def __init__(
        self,
        seed: int,
        *,
        size: Annotated[int, AtLeast(1), AtMost(100_000_000), Example("8192")],
        heldout: Annotated[int, AtLeast(0), Example("500")],
        image_size: Annotated[int, AtLeast(8), Example("72")],
        cells: Annotated[int, AtLeast(1), AtMost(64), Example("6")],
        objects: Annotated[int, AtLeast(1), Example("3")],
        clutter: Annotated[float, AtLeast(0), AtMost(1)],
        questions: Annotated[int, AtLeast(1), Example("3")],
    ) -> None:
        if objects > (most := min(len(SHAPES), len(COLOURS), cells * cells)):
            raise DataError(
                f"data.objects={objects} shapes cannot all differ in shape and colour and have one of {cells * cells} "
                f"cells each\n  fix: set data.objects to 1..{most}"
            )
        self.seed, self.size, self.num_heldout, self.image_size = seed, size, heldout, image_size
        self.cells, self.objects, self.clutter, self.questions = cells, objects, clutter, questions

    def __len__(self) -> int:
        return self.size

    def train(self, index: int, epoch: int) -> Sample:
        rng = _rng(self.seed, "train", epoch, index)
        scene = self._scene(rng)
        asked = rng.sample(scene.objects, min(self.questions, self.objects))
        return self._sample(f"train-{epoch}-{index}", scene, [_ask(item, rng) for item in asked])

    def heldout(self) -> Sequence[Sample]:
        samples = []
        for index in range(self.num_heldout):
            rng = _rng(HELDOUT_SEED, index)
            scene = self._scene(rng)
            samples.append(self._sample(f"heldout-{index}", scene, [_ask(rng.choice(scene.objects), rng)]))
        return samples

    def fingerprint(self) -> str:
        return hashlib.sha256(f"shapes-cluttered-1 {sorted(vars(self).items())}".encode()).hexdigest()[:16]

    def _scene(self, rng: random.Random) -> ClutteredScene:
        places = rng.sample(range(self.cells**2), self.cells**2)
        shapes, colours = rng.sample(SHAPES, self.objects), rng.sample(COLOUR_NAMES, self.objects)
        objects = [
            self._item(rng, place, shape, colour, jittered(rng, COLOURS[colour]))
            for place, shape, colour in zip(places, shapes, colours, strict=False)
        ]
        grey = []
        for place in places[self.objects :]:
            if rng.random() < self.clutter:
                level = rng.randint(*GREY)
                grey.append(self._item(rng, place, rng.choice(SHAPES), "grey", jittered(rng, (level, level, level))))
        return ClutteredScene(objects, grey, background_of(rng), rng.getrandbits(32))

    def _item(self, rng: random.Random, place: int, shape: str, colour: str, rgb: RGB) -> Item:
        row, column = divmod(place, self.cells)
        radius = rng.uniform(*SIZES)
        slack = 0.5 - radius
        x, y = (at + 0.5 + rng.uniform(-slack, slack) for at in (column, row))
        return Item(shape, colour, x / self.cells, y / self.cells, radius / self.cells, rng.uniform(-0.1, 0.1), rgb)

    def _sample(self, name: str, scene: ClutteredScene, asked: Sequence[Question]) -> Sample:
        picture = Image(partial(_render, scene, self.image_size), f"{name}.0")
        messages = []
        for i, question in enumerate(asked):
            messages.append(Message("user", (*((picture,) if i == 0 else ()), question.text)))
            messages.append(Message("assistant", (question.answer,)))
        return Sample(name, tuple(messages), asked[-1].kind, asked[-1].choices, cluster=name)


@dataclass(frozen=True, slots=True)
class ClutteredScene:
    """What a picture shows: shapes with a colour, and grey ones."""

    objects: list[Item]
    grey: list[Item]
    background: RGB
    noise_seed: int


def _ask(item: Item, rng: random.Random) -> Question:
    """A question that means one shape, as no other has its shape or its colour."""
    if rng.random() < 0.5:
        return Question("colour", f"what colour is the {item.shape}?", item.colour, COLOUR_NAMES)
    return Question("shape", f"which shape is {item.colour}?", item.shape, SHAPES)


def _render(scene: ClutteredScene, size: int) -> PILImage.Image:
    return rendered([*scene.grey, *scene.objects], scene.background, scene.noise_seed, size)


def _rng(*name: object) -> random.Random:
    digest = hashlib.blake2b("/".join(map(str, ("shapes-cluttered", *name))).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))
