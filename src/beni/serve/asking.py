"""A conversation of a request as a trained model takes it, and what both engines tell of the model.

It stands apart from ``engine``, which gateway and page import where there is no torch.
"""

from __future__ import annotations

from typing import Any

from beni.model.speaking import LONGEST_ANSWER, Sampling
from beni.serve.engine import Chat, Turn
from beni.trained import Trained


def facts_of(engine: str, trained: Trained) -> dict[str, Any]:
    """What a person wants to know of any engine's model."""
    return {
        "engine": engine,
        "step": trained.step,
        "device": str(trained.device),
        "precision": trained.precision,
        "template": trained.renderer.hash(),
    }


def sampling_of(chat: Chat) -> Sampling:
    """How its next message is chosen."""
    most = LONGEST_ANSWER if chat.max_tokens is None else chat.max_tokens
    return Sampling(chat.temperature, chat.top_p, most, chat.stops, chat.seed)


def message_of(turn: Turn) -> dict[str, Any]:
    """A message as ``Trained`` takes it."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": parts}
