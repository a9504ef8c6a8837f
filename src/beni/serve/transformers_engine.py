"""The engine in the worker's own process: a run's model (``beni.trained``), generating with transformers."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from PIL.Image import Image as Picture

from beni.data.images import decode
from beni.data.sample import Message, Sample
from beni.errors import BeniError
from beni.evals.drawings import artist_of
from beni.evals.gallery import THUMBNAIL, drawings_of
from beni.evals.subject import Asked
from beni.model.messages import as_image
from beni.serve.asking import facts_of, message_of, sampling_of
from beni.serve.batching import Batcher, Job, told
from beni.serve.completions import Usage
from beni.serve.engine import Chat, Piece, Seen
from beni.serve.metrics import WorkerMetrics
from beni.serve.refused import Refused
from beni.trained import Trained

LAYERS = 2
"""Last layers of the llm whose attention is drawn."""
POSITIONS = 8192
"""Positions of a conversation whose attention is drawn: what all of them may attend to is written out, 0.7 GB at so
many."""
READ = 1024
"""Tokens of an answer whose attention is drawn: each has a weight for every position in every head."""


class TransformersEngine:
    """Answers in batches of conversations that came together.

    Args:
        trained: the model.
        model: name under which it is served.
        most: conversations of a batch; 1 where the llm takes the padding of a batch for text.
        linger: seconds for which a conversation waits for others.
        waiting: conversations that may wait.
    """

    def __init__(self, trained: Trained, model: str, most: int, linger: float, waiting: int) -> None:
        self.trained, self.model, self.metrics = trained, model, WorkerMetrics()
        self.batcher = Batcher(self._answers, most if trained.together else 1, linger, waiting, self.metrics)

    def answer(self, chat: Chat) -> AsyncGenerator[Piece]:
        return self.batcher.answer(chat)

    async def look(self, chat: Chat, answer: str) -> list[Seen]:
        return await self.batcher.beside(lambda: self._look(chat, answer))

    def facts(self) -> dict[str, Any]:
        return facts_of("transformers", self.trained) | {"batch": self.batcher.most}

    def sound(self) -> bool:
        return self.batcher.sound()

    def close(self) -> None:
        self.batcher.close()

    def _answers(self, jobs: Sequence[Job]) -> None:
        found = self.trained.say(
            [[message_of(turn) for turn in job.chat.turns] for job in jobs],
            [sampling_of(job.chat) for job in jobs],
            hear=lambda row, text: jobs[row].tell(Piece(text)) if text else None,
            gone=lambda row: jobs[row].gone,
        )
        for job, answer in zip(jobs, found, strict=True):
            usage = Usage(answer.prompt_tokens, answer.tokens)
            self.metrics.answers.labels(answer.finish).inc()
            self.metrics.tokens.labels("prompt").inc(usage.prompt)
            self.metrics.tokens.labels("completion").inc(usage.completion)
            job.tell(Piece("", answer.finish, usage))

    def _look(self, chat: Chat, answer: str) -> list[Seen]:
        try:
            return self._seen(chat, answer)
        except Refused:
            raise
        except BeniError as error:
            raise Refused(400, told(error), "invalid_conversation") from None

    def _seen(self, chat: Chat, answer: str) -> list[Seen]:
        messages = [Message(turn.role, tuple(_part(part) for part in turn.parts)) for turn in chat.turns]
        sample = Sample("conversation", (*messages, Message("assistant", (answer,))))
        pictures = [decode(image) for image in sample.images]
        if not pictures:
            raise Refused(400, "There is no image in the conversation", "no_image", "messages")
        subject = self.trained.subject(1)
        views = [subject.viewer(picture) for picture in pictures]
        markups = [view.markup for view in views]
        begin = len(subject.renderer.prompt(sample, markups).ids)
        said = subject.renderer.encode(sample, markups, fit=False).ids[begin:] if answer.strip() else []
        self._require_room(begin, len(said))
        looked = subject.look(Asked(sample, pictures), list(said), LAYERS if len(said) else 0)
        artist, seen = artist_of(subject.model), []
        for number, (view, picture) in enumerate(zip(views, pictures, strict=True)):
            small = picture.copy()
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            for drawing in drawings_of(artist, looked, number, view.layout, small.size):
                name = f"{drawing.name} {drawing.part}".strip()
                seen.append(Seen(number, name, drawing.note, _over(small, drawing.overlay)))
        return seen

    def _require_room(self, prompt: int, answer: int) -> None:
        """Return when the llm has positions for a prompt and an answer, and they are not too many to be looked at.

        Raises:
            BeniError: when they are.
        """
        room, takes = self.trained.room(prompt), f"The answer takes {answer} tokens"
        if answer > room:
            raise Refused(400, f"{takes}, the llm has {room} positions for it", "too_long", "answer")
        if answer > READ:
            raise Refused(400, f"{takes}, at most {READ} are looked at", "too_long", "answer")
        if answer and prompt + answer > POSITIONS:
            both = f"The conversation takes {prompt + answer} positions with its answer"
            raise Refused(400, f"{both}, at most {POSITIONS} are looked at", "too_long", "messages")


def _part(part: str | bytes) -> Any:
    return part if isinstance(part, str) else as_image(part)


def _over(picture: Picture, overlay: Picture) -> bytes:
    """A picture with what is drawn over it, as PNG."""
    above = overlay.convert("RGBA")
    below = picture.convert("RGBA").resize(above.size)
    below.alpha_composite(above)
    file = io.BytesIO()
    below.convert("RGB").save(file, "PNG")
    return file.getvalue()
