"""The one internal form of a sample: messages of interleaved text and images, and what evaluation needs to score it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from beni.data.images import Augment, Image
from beni.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        content: text and images in reading order.
        train: whether the turn is supervised; None means assistant turns are.
    """

    role: Role
    content: tuple[str | Image, ...]
    train: bool | None = None

    @property
    def supervised(self) -> bool:
        return self.role == "assistant" if self.train is None else self.train


@dataclass(frozen=True)
class Sample:
    """A conversation.

    Attributes:
        id: unique in its source, the same in every run.
        kind: of question, for scores by kind.
        choices: admissible answers, the expected one among them; empty when the answer is free.
        cluster: examples that share it (one picture, say) are not independent.
        where: it was read from, for errors: ``data.json, record 12``.
        source: name of its source in a mixture.
        references: what people have answered, each as often as it was said; empty when only the answer that is trained
            on is known.
        augment: how its pictures are varied in training; in evaluation they are not.
    """

    id: str
    messages: tuple[Message, ...]
    kind: str = ""
    choices: tuple[str, ...] = ()
    cluster: str = ""
    where: str = ""
    source: str = ""
    references: tuple[str, ...] = ()
    augment: Augment = field(default_factory=Augment)

    def __str__(self) -> str:
        """How errors name it."""
        return f"sample {self.id} ({self.where})" if self.where else f"sample {self.id}"

    @property
    def images(self) -> tuple[Image, ...]:
        """All images in reading order."""
        return tuple(part for m in self.messages for part in m.content if isinstance(part, Image))

    @property
    def asked_images(self) -> tuple[Image, ...]:
        """The images in front of the last assistant message: those that an answer is about."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return replace(self, messages=self.messages[:last]).images

    @property
    def answer(self) -> str:
        """Text of the last assistant message, without the white space around it, as it is supervised.

        Raises:
            DataError: when there is no such message.
        """
        last = next((m for m in reversed(self.messages) if m.role == "assistant"), None)
        if last is None:
            raise DataError(f"{self.where or self.id} has no assistant message\n  fix: correct the record")
        return "".join(part for part in last.content if isinstance(part, str)).strip()

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All that count as right: the answer that is trained on, then the other references."""
        return tuple(dict.fromkeys((self.answer, *self.references)))

    @property
    def question(self) -> str:
        """Text of the last user message; empty when it holds only images."""
        users = [m for m in self.messages if m.role == "user"]
        return "".join(p for p in users[-1].content if isinstance(p, str)).strip() if users else ""

    @property
    def asked(self) -> str:
        """Text of all user messages that are not supervised, a line each: what stages that read text are told."""
        heard = (m for m in self.messages if m.role == "user" and not m.supervised)
        return "\n".join("".join(p for p in m.content if isinstance(p, str)).strip() for m in heard)

    def answered(self, text: str) -> Sample:
        """The sample with ``text`` in the place of its answer; itself where that is the answer."""
        return self if text == self.answer else self.with_answer(text)

    def with_answer(self, text: str) -> Sample:
        """The sample with ``text`` as its last assistant message."""
        last = max(i for i, m in enumerate(self.messages) if m.role == "assistant")
        messages = list(self.messages)
        messages[last] = Message("assistant", (text,), messages[last].train)
        return replace(self, messages=tuple(messages))


Bind = Callable[[Sample], Sample]
"""Gives a sample pictures that can be opened: ``Fetcher.bind`` where they may lie on a network."""


def at_hand(sample: Sample) -> Sample:
    """The sample as it is: all its pictures can be opened. One that has to be fetched first is an error then."""
    return sample
