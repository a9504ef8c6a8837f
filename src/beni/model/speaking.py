"""Answers to several prompts at once, each with its own temperature, seed, stop texts, limit and end.

``transformers``' ``generate`` runs them as one batch and takes the most likely token of every row. What is drawn at
random is drawn by adding Gumbel noise of the row's own seed to its scores first (arXiv 1611.00712), so an answer does
not depend on which others are in the batch. Text is handed over as soon as it is sure to stay.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from beni.data.render.template import Renderer
from beni.errors import CompositionError, ConfigError
from beni.llm.base import Llm

LONGEST_ANSWER = 256
"""New tokens of an answer that comes to no end token."""
BROKEN = "\ufffd"
"""What a tokenizer gives for the first bytes of a character whose others are still to come."""

Finish = Literal["stop", "length", "cancelled"]
"""Why an answer ended: by an end token or a stop text, by its limit, or because nobody wants the rest."""
Hear = Callable[[int, str], None]
"""Told the number of a row and the text that has come to it; called with every token of the row, so often with none."""
Gone = Callable[[int], bool]
"""Says of the number of a row whether nobody wants the rest of its answer."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen.

    Attributes:
        temperature: of the softmax, at least 0; 0 takes the most likely token.
        top_p: share of the probability, in (0, 1], that the most likely tokens must have together to be drawn from.
        max_new_tokens: of the answer, at least 1; the llm's last position may end it earlier.
        stop: texts in front of which an answer ends; they may be white space.
        seed: of what is drawn; None draws another one each time.

    Raises:
        ConfigError: when a value is of another type, or out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = LONGEST_ANSWER
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = (
            (
                "temperature",
                _real(self.temperature) and 0.0 <= self.temperature < float("inf"),
                "a number of at least 0",
            ),
            ("top_p", _real(self.top_p) and 0.0 < self.top_p <= 1.0, "a number above 0 and at most 1"),
            (
                "max_new_tokens",
                _whole(self.max_new_tokens) and self.max_new_tokens >= 1,
                "a whole number of at least 1",
            ),
            ("stop", _texts(self.stop), "a tuple of texts, none empty"),
            ("seed", self.seed is None or _whole(self.seed), "a whole number or None"),
        )
        for name, right, expected in ranges:
            if not right:
                value = getattr(self, name)
                raise ConfigError(f"{name}={value!r}, expected {expected}\n  fix: set another {name}")


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) and text for text in value)


@dataclass(frozen=True)
class Answer:
    """What a model has said.

    Attributes:
        text: without end token and stop text.
        finish: why it ended.
        prompt_tokens: positions of the prompt, those of images included.
        tokens: new ones, the end token included.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int


def require_generates(llm: Llm) -> None:
    """Return when an llm can go on after embeddings.

    Raises:
        CompositionError: when it cannot.
    """
    if not llm.capabilities.generates:
        raise CompositionError(
            "E-GENERATE",
            "transformers cannot generate from embeddings with this llm",
            groups=("llm",),
            fix="use an llm of another family; beni.evaluate reads with task=run, task=choice or task=perplexity",
        )


class Speaker:
    """The rows of one call of ``generate``: hand ``options()`` to it, then read ``answers()``.

    Args:
        renderer: of the model.
        samplings: one for each row.
        limits: new tokens that each row may have at most, by the llm's positions.
        hear: told of the text that comes.
        gone: asked after every token.
    """

    def __init__(
        self,
        renderer: Renderer,
        samplings: Sequence[Sampling],
        limits: Sequence[int],
        hear: Hear = lambda row, text: None,
        gone: Gone = lambda row: False,
    ) -> None:
        most = [min(how.max_new_tokens, limit) for how, limit in zip(samplings, limits, strict=True)]
        self.rows = [Row(renderer, how, count) for how, count in zip(samplings, most, strict=True)]
        self.samplings, self.tokens = samplings, renderer.tokens
        self.hear, self.gone = hear, gone

    def options(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        return {
            "do_sample": False,
            "max_new_tokens": max(row.most for row in self.rows),
            "pad_token_id": self.tokens.pad,
            "eos_token_id": list(self.tokens.eos),
            "logits_processor": LogitsProcessorList([_Draws(self.samplings)]),
            "stopping_criteria": StoppingCriteriaList([_Ends(self)]),
        }

    def answers(self, prompt_tokens: Sequence[int]) -> list[Answer]:
        """What came of each row."""
        return [
            Answer(row.shown, row.finish or "length", asked, len(row.ids))
            for row, asked in zip(self.rows, prompt_tokens, strict=True)
        ]


class Row:
    """One answer that is being given.

    Attributes:
        ids: tokens that have come.
        shown: text that is sure to stay.
        finish: why it ended; None while it goes on.
    """

    def __init__(self, renderer: Renderer, how: Sampling, most: int) -> None:
        self.renderer, self.how, self.most = renderer, how, most
        self.ids: list[int] = []
        self.shown = ""
        self.finish: Finish | None = None

    def take(self, token: int) -> str:
        """The text that is sure to stay now, beyond what was shown before."""
        self.ids.append(token)
        # spaces in front belong to what stands before an answer, and to no stop text; line breaks may be one
        text = self.renderer.written(self.ids).lstrip(" ")
        ends = [place for stop in self.how.stop if (place := text.find(stop)) >= 0]
        if ends:
            text = text[: min(ends)]
        if ends or token in self.renderer.tokens.eos:
            self.finish = "stop"
        elif len(self.ids) >= self.most:
            self.finish = "length"
        else:
            text = self._sure(text)
        text = text.strip()
        new = text[len(self.shown) :] if text.startswith(self.shown) else ""
        self.shown += new
        return new

    def _sure(self, text: str) -> str:
        """The text without what later tokens may change: half a character, or the beginning of a stop text."""
        text = text.rstrip(BROKEN)
        longest = max((len(stop) for stop in self.how.stop), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.how.stop):
                return text[:-length]
        return text


class _Draws(LogitsProcessor):
    """``(b, v) -> (b, v)``: scores whose highest is the token of the row: drawn, or its most likely one."""

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self.samplings = samplings
        self.streams = [
            torch.Generator().manual_seed(secrets.randbits(63) if how.seed is None else int(how.seed) % 2**63)
            for how in samplings
        ]

    def __call__(self, input_ids: Any, scores: Float[Tensor, "b v"]) -> Any:
        out = scores.clone()
        for row, (how, stream) in enumerate(zip(self.samplings, self.streams, strict=True)):
            if how.temperature == 0.0:
                continue
            own = TemperatureLogitsWarper(float(how.temperature))(input_ids, scores[row : row + 1].float())
            if how.top_p < 1.0:
                own = TopPLogitsWarper(float(how.top_p))(input_ids, own)
            gumbel = -torch.empty(own.shape).exponential_(generator=stream).log()
            out[row] = (own + gumbel.to(own.device))[0].to(out.dtype)
        return out


class _Ends(StoppingCriteria):
    """``(b, t) -> (b,)``: which rows have their answers. Each new token is read here once."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        speaker = self.speaker
        for number, (row, token) in enumerate(zip(speaker.rows, input_ids[:, -1].tolist(), strict=True)):
            if row.finish is not None:
                continue
            speaker.hear(number, row.take(token))
            if row.finish is None and speaker.gone(number):
                row.finish = "cancelled"
        return torch.tensor([row.finish is not None for row in speaker.rows], device=input_ids.device)
