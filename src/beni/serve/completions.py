"""The answers of OpenAI's chat completions: one object, or the chunks of a stream as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"
EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt, those of its images included, and of its answer."""

    prompt: int
    completion: int

    def body(self) -> dict[str, int]:
        """What the answer holds of it."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


@dataclass(frozen=True)
class Completion:
    """One answer of a model, in the two forms in which it is sent."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish: str | None, usage: Usage | None) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            ValueError: when it has no end.
        """
        if finish is None or usage is None:
            raise ValueError("an answer without its end")
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion") | {"choices": [choice], "usage": usage.body()}

    def first(self) -> bytes:
        """The chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> bytes:
        """A chunk with the next piece of text."""
        return self._chunk({"content": text}, None)

    def last(self, finish: str) -> bytes:
        """The chunk that says why the answer ended."""
        return self._chunk({}, finish)

    def used(self, usage: Usage) -> bytes:
        """The chunk of ``stream_options.include_usage``."""
        return event(self._head("chat.completion.chunk") | {"choices": [], "usage": usage.body()})

    def _chunk(self, delta: Mapping[str, str], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._head("chat.completion.chunk") | {"choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def models(names: Mapping[str, int]) -> dict[str, Any]:
    """The list of models.

    Args:
        names: of models, and when each was begun to be served, in seconds since 1970.
    """
    data = [{"id": name, "object": "model", "created": created, "owned_by": "beni"} for name, created in names.items()]
    return {"object": "list", "data": data}
