"""The one internal form of a sample: messages of interleaved text and images, and what evaluation needs to score it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from beni.data.images import Augment, Image

Role = Literal["system", "user", "assistant"]
Task = Literal["answer", "choice", "loss"]


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
    """

    id: str
    messages: tuple[Message, ...]
    kind: str = ""
    choices: tuple[str, ...] = ()
    cluster: str = ""
    where: str = ""
    source: str = ""

    def __str__(self) -> str:
        """How errors name it."""
        return f"sample {self.id} ({self.where})" if self.where else f"sample {self.id}"

    @property
    def images(self) -> tuple[Image, ...]:
        """All images in reading order."""
        return tuple(part for m in self.messages for part in m.content if isinstance(part, Image))

    @property
    def answer(self) -> str:
        """Text of the last assistant message, without the white space around it, as it is supervised."""
        last = next(m for m in reversed(self.messages) if m.role == "assistant")
        return "".join(part for part in last.content if isinstance(part, str)).strip()

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

    def with_answer(self, text: str) -> Sample:
        """The same sample whose last assistant message says ``text``."""
        last = max(i for i, m in enumerate(self.messages) if m.role == "assistant")
        messages = list(self.messages)
        messages[last] = Message("assistant", (text,), messages[last].train)
        return replace(self, messages=tuple(messages))


class Part(NamedTuple):
    """Consecutive samples of an epoch that one source gives: sample ``i`` is its ``train(indices[i], epochs[i])``."""

    source: Source
    epochs: np.ndarray
    indices: np.ndarray


class Source(ABC):
    """Where samples come from. Sample ``index`` of an epoch is a pure function, so any process can draw any of them.

    Attributes:
        task: how held-out samples are scored: ``answer`` (greedy answer equals the expected one), ``choice`` (the
            expected answer has the best mean token likelihood among the choices) or ``loss``.
        augment: how training pictures are varied.
        varies: whether a sample's text or pictures differ between epochs, augmentation aside.
        names: of the sources it is made of, as ``Sample.source`` says them.
    """

    task: Task
    augment: Augment = Augment()
    varies: bool = False
    names: tuple[str, ...] = ("",)

    @abstractmethod
    def __len__(self) -> int:
        """Training samples of one epoch."""

    @abstractmethod
    def train(self, index: int, epoch: int) -> Sample:
        """Training sample ``index`` in [0, len)."""

    def parts(self, epoch: int) -> list[Part]:
        """Of which sources the samples 0 ... len - 1 of an epoch come; a mixture says so, others are one part."""
        return [Part(self, np.full(len(self), epoch), np.arange(len(self)))]

    def siblings(self, index: int, epoch: int) -> range:
        """Which samples of the epoch come from the same source as ``index``: any of them may stand in for it."""
        return range(len(self))

    def measure(self, mean_tokens: Callable[[Source], float]) -> None:  # noqa: B027  most sources need not know
        """Told how long the samples of a source are, before anything else is asked: a mixture may have shares of
        tokens. ``mean_tokens`` builds an index, so only who needs it calls it.
        """

    def shares(self) -> dict[str, float]:
        """Share of an epoch's samples that each source gives; empty where it is one source."""
        return {}

    def augment_of(self, index: int) -> Augment:
        """How the pictures of a training sample are varied."""
        return self.augment

    @abstractmethod
    def heldout(self) -> Sequence[Sample]:
        """Held-out samples, the same for every seed of a study; their pictures may still be undecoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the content changes."""
