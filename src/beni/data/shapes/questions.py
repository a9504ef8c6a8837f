"""Questions about drawn scenes, each with its answer and the answers that are admissible.

Whatever makes a question askable respects the symmetries of the scenes (``scenes.py``), so answers to colour, shape,
position and relation questions are uniform given the text; yes/no answers of existence questions are drawn by a
fair coin before the words, and only when the scene allows both; two-picture questions are symmetric in the pictures or
use the coin. The guarantee is for a question on its own: later questions of one conversation can be easier after the
earlier answers, so evaluation asks one question a picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from beni.data.shapes.scenes import COLOUR_NAMES, COUNTS, PLACES, SHAPES, TOTALS, VALUES, Attribute, Item, Scene

NUMBERS: Final[tuple[str, ...]] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
YES_NO: Final[tuple[str, ...]] = ("yes", "no")
PICTURES: Final[tuple[str, ...]] = ("first", "second")

IMAGE_KINDS: Final[tuple[str, ...]] = (
    "colour", "shape", "count", "position", "relation", "existence",
)  # fmt: skip
"""Kinds of question about one picture."""
LONGER: Final[tuple[str, ...]] = ("count", "position", "relation", "existence")
"""Kinds that take longer to learn; training asks them twice as often as the others."""
KINDS: Final[tuple[str, ...]] = (*IMAGE_KINDS, "pictures", "text")
"""All kinds: those about one picture, about two pictures, and about none."""

_CLEAR: Final = 0.10
"""Least difference of two coordinates that are compared."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the answers that are admissible (one of them right)."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]


Builder = Callable[[Scene, random.Random], Question | None]
"""Asks something about a scene, or returns None where the scene does not allow it."""


def _unique(scene: Scene, attribute: Attribute) -> list[Item]:
    """Items that are the only ones with their value of ``attribute``."""
    seen = [getattr(item, attribute) for item in scene.items]
    return [item for item, value in zip(scene.items, seen, strict=True) if seen.count(value) == 1]


def _reference(scene: Scene, item: Item, rng: random.Random) -> str | None:
    """Words (without article) that single out ``item``, or None if none do."""
    options = []
    if len(scene.having("shape", item.shape)) == 1:
        options.append(item.shape)
    if len(scene.having("colour", item.colour)) == 1:
        options.append(f"{item.colour} shape")
    if sum(other.name == item.name for other in scene.items) == 1:
        options.append(item.name)
    return rng.choice(options) if options else None


def _ask_colour(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.5:
        item = rng.choice(scene.items)
        text = rng.choice(("what colour is the shape at the {}?", "which colour is at the {}?")).format(item.place)
    else:
        unique = _unique(scene, "shape")
        if not unique:
            return None
        item = rng.choice(unique)
        text = rng.choice(("what colour is the {}?", "which colour has the {}?", "the {} is of what colour?")).format(
            item.shape
        )
    return Question("colour", text, item.colour, COLOUR_NAMES)


def _ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.5:
        item = rng.choice(scene.items)
        text = rng.choice(("which shape is at the {}?", "what is at the {}?")).format(item.place)
    else:
        unique = _unique(scene, "colour")
        if not unique:
            return None
        item = rng.choice(unique)
        text = rng.choice(("which shape is {}?", "what shape is {}?", "what is the {} shape?")).format(item.colour)
    return Question("shape", text, item.shape, SHAPES)


def _ask_count(scene: Scene, rng: random.Random) -> Question:
    if rng.random() < 0.4:
        text = rng.choice(("how many shapes are there?", "how many shapes do you see?"))
        choices = tuple(NUMBERS[n] for n in TOTALS)
        return Question("count", text, NUMBERS[len(scene.items)], choices)
    attribute, value = scene.counted
    noun = f"{value} shapes" if attribute == "colour" else _plural(value)
    text = rng.choice(("how many {} are there?", "how many {} do you see?")).format(noun)
    choices = tuple(NUMBERS[n] for n in COUNTS)
    return Question("count", text, NUMBERS[len(scene.having(attribute, value))], choices)


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _ask_position(scene: Scene, rng: random.Random) -> Question | None:
    item = rng.choice(scene.items)
    reference = _reference(scene, item, rng)
    if reference is None:
        return None
    form = rng.random()
    if form < 0.6:
        text = rng.choice(("where is the {}?", "at which place is the {}?")).format(reference)
        return Question("position", text, item.place, PLACES)
    value, low, high = (item.x, "left", "right") if form < 0.8 else (item.y, "top", "bottom")
    if 1 / 3 <= value <= 2 / 3:
        return None
    first, second = (low, high) if rng.random() < 0.5 else (high, low)
    text = f"is the {reference} at the {first} or at the {second}?"
    return Question("position", text, low if value < 0.5 else high, (first, second))


class _Direction(NamedTuple):
    preposition: str
    superlative: str
    axis: Literal["x", "y"]
    sign: int


_DIRECTIONS: Final = (
    _Direction("left of", "leftmost", "x", -1),
    _Direction("right of", "rightmost", "x", 1),
    _Direction("above", "highest", "y", -1),
    _Direction("below", "lowest", "y", 1),
)


def _ask_relation(scene: Scene, rng: random.Random) -> Question | None:
    direction = rng.choice(_DIRECTIONS)
    along = [direction.sign * getattr(item, direction.axis) for item in scene.items]
    if rng.random() < 0.4:
        order = sorted(range(len(along)), key=along.__getitem__)
        if along[order[-1]] - along[order[-2]] < _CLEAR:
            return None
        item = scene.items[order[-1]]
        if rng.random() < 0.5:
            text = f"which shape is {direction.superlative}?"
            return Question("relation", text, item.shape, SHAPES)
        text = f"what colour is the {direction.superlative} shape?"
        return Question("relation", text, item.colour, COLOUR_NAMES)
    one, two = rng.sample(range(len(along)), 2)
    if abs(along[one] - along[two]) < _CLEAR:
        return None
    reference, other = (_reference(scene, scene.items[i], rng) for i in (one, two))
    if reference is None or other is None:
        return None
    text = f"is the {reference} {direction.preposition} the {other}?"
    return Question("relation", text, "yes" if along[one] > along[two] else "no", YES_NO)


def _ask_existence(scene: Scene, rng: random.Random) -> Question | None:
    form = rng.choice(("shape", "colour", "name", "name"))
    if form == "name":
        present = sorted(scene.names())
        shapes = {item.shape for item in scene.items}
        colours = {item.colour for item in scene.items}
        everything = [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES]
        if rng.random() < 0.7:  # both words occur, but not together
            everything = [(c, s) for c, s in everything if c in colours and s in shapes]
        absent = [f"{c} {s}" for c, s in everything if f"{c} {s}" not in scene.names()]
        noun = "{}"
    else:
        occurring = {getattr(item, form) for item in scene.items}
        present = sorted(occurring)
        absent = [value for value in VALUES[form] if value not in occurring]
        noun = "{}" if form == "shape" else "{} shape"
    if not absent:
        return None
    answer = rng.choice(YES_NO)
    subject = noun.format(rng.choice(present if answer == "yes" else absent))
    text = rng.choice(("is there a {}?", "do you see a {}?")).format(subject)
    return Question("existence", text, answer, YES_NO)


def ask_description(scene: Scene, rng: random.Random) -> Question:
    """Every shape and its place, in reading order; open-ended, so without choices and never scored."""
    ordered = sorted(scene.items, key=lambda item: PLACES.index(item.place))
    text = rng.choice(("describe the picture.", "what do you see?"))
    return Question("description", text, ", ".join(f"{item.place} {item.name}" for item in ordered), ())


_ASK: Final[dict[str, Builder]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "position": _ask_position,
    "relation": _ask_relation,
    "existence": _ask_existence,
}


def ask_pictures(first: Scene, second: Scene, rng: random.Random) -> Question | None:
    """A question about two pictures."""
    form = rng.randrange(4)
    if form == 0:
        if len(first.items) == len(second.items):
            return None
        text = "which picture has more shapes?"
        answer = PICTURES[len(second.items) > len(first.items)]
        return Question("pictures", text, answer, PICTURES)
    if form == 1:
        index = rng.randrange(2)
        unique = _unique((first, second)[index], "shape")
        if not unique:
            return None
        item = rng.choice(unique)
        text = f"what colour is the {item.shape} in the {PICTURES[index]} picture?"
        return Question("pictures", text, item.colour, COLOUR_NAMES)
    attribute: Attribute = rng.choice(("shape", "colour"))
    here = {getattr(item, attribute) for item in first.items}
    there = {getattr(item, attribute) for item in second.items}
    noun = "{}" if attribute == "shape" else "{} shape"
    in_one, in_both = sorted(here ^ there), sorted(here & there)
    if form == 2:
        if not in_one:
            return None
        value = rng.choice(in_one)
        text = f"which picture has a {noun.format(value)}?"
        return Question("pictures", text, PICTURES[value in there], PICTURES)
    if not in_one or not in_both:
        return None
    answer = rng.choice(YES_NO)
    value = rng.choice(in_both if answer == "yes" else in_one)
    text = f"do both pictures have a {noun.format(value)}?"
    return Question("pictures", text, answer, YES_NO)


_SIDES: Final[dict[str, str]] = {"triangle": "three", "square": "four", "circle": "zero"}


def ask_text(rng: random.Random) -> Question:
    """A question that needs no picture."""
    form = rng.randrange(4)
    if form == 0:
        shape = rng.choice(tuple(_SIDES))
        text = rng.choice(("how many sides has a {}?", "how many sides does a {} have?"))
        return Question("text", text.format(shape), _SIDES[shape], tuple(sorted(set(_SIDES.values()))))
    if form == 1:
        a, b = rng.randint(0, 5), rng.randint(0, 5)
        return Question("text", f"what is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b], NUMBERS)
    if form == 2:
        a, b = rng.sample(range(len(NUMBERS)), 2)
        text = f"is {NUMBERS[a]} more than {NUMBERS[b]}?"
        return Question("text", text, YES_NO[a <= b], YES_NO)
    word = rng.choice((*SHAPES, *COLOUR_NAMES))
    answer = "shape" if word in SHAPES else "colour"
    return Question("text", f"is {word} a colour or a shape?", answer, ("colour", "shape"))


def ask_several(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """At most ``count`` different questions about one scene, its kinds well mixed.

    Kinds are drawn without looking at the scene. One that does not fit is replaced, but never by a count: whether a
    total is asked must not depend on how many shapes there are.
    """
    deck = (*IMAGE_KINDS, *LONGER)
    kinds = [deck[i] for i in _rounds(rng, len(deck), count)]
    asked = {q.text: q for q in (_ASK[kind](scene, rng) for kind in kinds) if q is not None}
    spare = [kind for kind in IMAGE_KINDS if kind != "count"]
    for _ in range(4 * count):
        if len(asked) >= count:
            break
        if question := _ASK[rng.choice(spare)](scene, rng):
            asked.setdefault(question.text, question)
    several = list(asked.values())
    rng.shuffle(several)
    return several


def ask_one(rng: random.Random) -> tuple[Scene, Question]:
    """A question of a random kind and a scene that allows it."""
    kind = rng.choice(IMAGE_KINDS)
    while True:
        scene = Scene.draw(rng)
        if question := _ASK[kind](scene, rng):
            return scene, question


def _rounds(rng: random.Random, count: int, length: int) -> Iterator[int]:
    """``length`` indices below ``count``: whole shuffled rounds, so that kinds stay even."""
    while length > 0:
        yield from rng.sample(range(count), count)[:length]
        length -= count
