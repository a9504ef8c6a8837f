"""What a worker asks of an engine: answers to conversations, in pieces. How they are batched is the engine's own."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from beni.serve.completions import Usage
from beni.serve.metrics import WorkerMetrics
from beni.serve.protocol import ChatRequest, LookRequest, TextPart
from beni.serve.refused import Refused

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """A message.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: texts and encoded images, in reading order.
    """

    role: Role
    parts: tuple[str | bytes, ...]


@dataclass(frozen=True)
class Chat:
    """A conversation, and how its next message is chosen.

    Attributes:
        max_tokens: new ones; None leaves it to the engine.
        seed: of what is drawn; None draws another one each time.
    """

    turns: tuple[Turn, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: that comes next.
        finish: ``stop`` or ``length`` with the last piece; None before.
        usage: with the last piece.
    """

    text: str
    finish: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Seen:
    """An image as the model saw it.

    Attributes:
        image: its number in the conversation.
        name: ``<stage>/<name>`` of what is drawn over it, or ``attention``.
        note: what that shows, in numbers.
        png: the image with the drawing.
    """

    image: int
    name: str
    note: str
    png: bytes


class Engine(Protocol):
    """Something that answers.

    Attributes:
        model: name under which it is asked.
        metrics: which it keeps.
    """

    model: str
    metrics: WorkerMetrics

    def answer(self, chat: Chat) -> AsyncGenerator[Piece]:
        """The answer in pieces; closing the iterator ends it.

        Raises:
            Refused: when the conversation cannot be answered.
        """
        ...

    async def look(self, chat: Chat, answer: str) -> list[Seen]:
        """What the model kept of the images in front of an answer, and what that answer looks at.

        Raises:
            Refused: when nothing of it can be drawn.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of the model."""
        ...

    def sound(self) -> bool:
        """Whether it can still answer."""
        ...

    def close(self) -> None:
        """Ends its threads."""
        ...


def chat_of(request: ChatRequest) -> Chat:
    """The conversation of a request, whose images have come along.

    Raises:
        Refused: when an image has not.
    """
    turns = []
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        content = message.content
        parts = [content] if isinstance(content, str) else [_part(part) for part in content]
        turns.append(Turn(role, tuple(parts)))
    return Chat(
        tuple(turns), request.temperature or 0.0, request.top_p or 1.0, request.longest, request.stops, request.seed
    )


def looked_at(request: LookRequest) -> Chat:
    """The conversation that is looked at."""
    return chat_of(request.chat)


def _part(part: Any) -> str | bytes:
    if isinstance(part, TextPart):
        return part.text
    head, comma, content = part.image_url.url.partition(";base64,")
    if not (head.startswith("data:") and comma):
        raise Refused(400, "A worker takes images as data URLs only; ask the gateway", "invalid_image", "messages")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise Refused(400, "An image is not base64", "invalid_image", "messages") from None
