"""``data=shapes``: drawn pictures, questions about them, exact answers. Endless, and needs no files.

Sample ``index`` of an epoch is a pure function of (seed, epoch, index), the same on every machine. Training asks
several questions about a picture in one conversation and ends it with a description: the names of all shapes and their
places are far more supervision a picture than single answers, and coming last they answer no question beforehand.
Held-out samples ask one question, from a stream of their own that no seed shares.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

from PIL import Image as PILImage

from beni.config.ranges import AtLeast, AtMost, Example
from beni.data.images import Image
from beni.data.metric import ExactAnswer
from beni.data.sample import Message, Sample
from beni.data.shapes import questions
from beni.data.shapes.questions import Question
from beni.data.shapes.scenes import Scene
from beni.data.source import SingleSource
from beni.errors import DataError

HELDOUT_SEED = "heldout"


class Shapes(SingleSource):
    """Questions about colour, shape, count, position, relation and existence, and some without or with two pictures.

    Args:
        seed: of the run; training scenes depend on it, held-out ones do not.
        size: training samples of one epoch; every epoch draws new ones.
        heldout: held-out questions.
        image_size: side of the pictures in pixels.
        questions: most questions in a training conversation about one picture.
        describe: end such a conversation with a description of the picture; descriptions are never scored.
        pictures_share: share of training conversations about two pictures.
        text_share: share of training conversations without a picture.
        described_share: share of training conversations whose picture is told in words: its description stands in the
            place of the picture, which an llm without a vision encoder can learn to answer from.

    Pictures are not augmented: a flip would make answers about left and right wrong.

    Raises:
        DataError: when the shares exceed 1 together.
    """

    metric = ExactAnswer()
    varies = True

    def __init__(
        self,
        seed: int,
        *,
        size: Annotated[int, AtLeast(1), AtMost(100_000_000), Example("8192")],
        heldout: Annotated[int, AtLeast(0), Example("1000")],
        image_size: Annotated[int, AtLeast(8), Example("48")],
        questions: Annotated[int, AtLeast(1), Example("4")],
        describe: bool,
        pictures_share: Annotated[float, AtLeast(0), AtMost(1), Example("0.06")],
        text_share: Annotated[float, AtLeast(0), AtMost(1), Example("0.04")],
        described_share: Annotated[float, AtLeast(0), AtMost(1), Example("0.0")],
    ) -> None:
        if not pictures_share + text_share + described_share <= 1:
            raise DataError(
                f"data.pictures_share={pictures_share}, data.text_share={text_share} and "
                f"data.described_share={described_share} exceed 1 together\n"
                "  fix: set data.pictures_share=0.06 data.text_share=0.04 data.described_share=0.0"
            )
        self.seed, self.size, self.num_heldout, self.image_size = seed, size, heldout, image_size
        self.questions, self.describe = questions, describe
        self.pictures_share, self.text_share, self.described_share = pictures_share, text_share, described_share

    def __len__(self) -> int:
        return self.size

    def train(self, index: int, epoch: int) -> Sample:
        rng = _rng(self.seed, "train", epoch, index)
        lot, told = rng.random(), ""
        if lot < self.text_share:
            scenes: tuple[Scene, ...] = ()
            asked = [questions.ask_text(rng) for _ in range(self.questions)]
        elif lot < self.text_share + self.pictures_share:
            scenes = (Scene.draw(rng), Scene.draw(rng))
            asked = [questions.ask_pictures(*scenes, rng) for _ in range(max(1, self.questions // 2))]
        else:
            scenes = (Scene.draw(rng),)
            asked = questions.ask_several(scenes[0], rng, self.questions)
            description = questions.ask_description(scenes[0], rng)
            if self.describe:
                asked.append(description)
            if lot < self.text_share + self.pictures_share + self.described_share:
                scenes, told = (), f"{description.answer}. "
        unique = list({q.text: q for q in asked if q is not None}.values()) or [questions.ask_text(rng)]
        return self._sample(f"train-{epoch}-{index}", scenes, unique, told)

    def heldout(self) -> Sequence[Sample]:
        return list(self._heldout())

    def fingerprint(self) -> str:
        return hashlib.sha256(f"shapes-1 {sorted(vars(self).items())}".encode()).hexdigest()[:16]

    def _heldout(self) -> Iterator[Sample]:
        for index in range(self.num_heldout):
            rng = _rng(HELDOUT_SEED, index)
            scene, question = questions.ask_one(rng)
            yield self._sample(f"heldout-{index}", (scene,), [question])

    def _sample(self, name: str, scenes: tuple[Scene, ...], asked: list[Question], told: str = "") -> Sample:
        messages = []
        for i, question in enumerate(asked):
            pictures = [
                Image(partial(_render, scene, self.image_size), f"{name}.{j}") for j, scene in enumerate(scenes)
            ]
            shown = pictures if i == 0 else ()
            messages.append(Message("user", (*shown, told + question.text if i == 0 else question.text)))
            messages.append(Message("assistant", (question.answer,)))
        return Sample(name, tuple(messages), asked[-1].kind, asked[-1].choices, cluster=name)


def _render(scene: Scene, size: int) -> PILImage.Image:
    return scene.render(size)


def _rng(*name: object) -> random.Random:
    digest = hashlib.blake2b("/".join(map(str, ("shapes", *name))).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))
