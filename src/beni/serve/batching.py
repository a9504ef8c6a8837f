"""Conversations that wait are answered together: one batch at a time, in a thread, those that came first in front.

A batch is taken when the one before has ended, or a moment after the first conversation has come while nothing runs.
Whoever goes away leaves the batch at its next token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from beni.errors import BeniError
from beni.serve.engine import Chat, Piece
from beni.serve.metrics import WorkerMetrics
from beni.serve.refused import Refused

log = logging.getLogger("beni.serve.worker")
T = TypeVar("T")


class Job:
    """A conversation that waits for its answer.

    Attributes:
        gone: nobody waits any more.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat, self.gone = chat, False
        self.ended, self.heard = False, False
        self.pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, piece: Piece | BaseException) -> None:
        """Hands over a piece, the last one or an error; from any thread."""
        self.heard = True
        self.ended = self.ended or isinstance(piece, BaseException) or piece.finish is not None
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


Answers = Callable[[Sequence[Job]], None]
"""Answers a batch, and tells every job of its last piece; raises ``BeniError`` before any job has heard of a piece."""


class Batcher:
    """Batches conversations.

    Args:
        answers: what answers a batch; called in one thread.
        most: conversations of a batch.
        linger: seconds for which the first one waits for others.
        waiting: conversations that may wait.
        metrics: which are told of batches.
    """

    def __init__(self, answers: Answers, most: int, linger: float, waiting: int, metrics: WorkerMetrics) -> None:
        self.answers, self.most, self.linger, self.limit, self.metrics = answers, most, linger, waiting, metrics
        self._waiting: deque[Job] = deque()
        self._come = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "beni-engine")
        self._task: asyncio.Task[None] | None = None

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece]:
        """The answer to a conversation in pieces.

        Raises:
            Refused: when too many wait, or it cannot be answered.
        """
        if len(self._waiting) >= self.limit:
            raise Refused(429, f"{self.limit} conversations wait already", "too_many_requests", wait=1.0)
        job = Job(chat)
        self._enter(job)
        try:
            while True:
                piece = await job.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            job.gone = True

    async def beside(self, work: Callable[[], T]) -> T:
        """What something gives that needs the model, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def sound(self) -> bool:
        """Whether batches are still taken."""
        return self._task is None or not self._task.done()

    def close(self) -> None:
        """Ends the thread, behind the batch that runs."""
        if self._task is not None:
            self._task.cancel()
        for job in self._waiting:
            job.gone = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _enter(self, job: Job) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._waiting.append(job)
        self.metrics.waiting.set(len(self._waiting))
        self._come.set()

    async def _run(self) -> None:
        while True:
            await self._come.wait()
            if self.linger and len(self._waiting) < self.most:
                await asyncio.sleep(self.linger)
            batch: list[Job] = []
            while self._waiting and len(batch) < self.most:
                job = self._waiting.popleft()
                batch += [] if job.gone else [job]
            if not self._waiting:
                self._come.clear()
            self.metrics.waiting.set(len(self._waiting))
            if batch:
                await self.beside(lambda batch=batch: self._batch(batch))

    def _batch(self, batch: Sequence[Job]) -> None:
        begun = time.perf_counter()
        self._together(batch)
        self.metrics.rows.observe(len(batch))
        self.metrics.seconds.observe(time.perf_counter() - begun)
        for job in batch:
            if not job.ended:
                job.tell(Refused(500, "The worker has failed", "internal_error"))

    def _together(self, batch: Sequence[Job]) -> None:
        """Where one conversation of several cannot be answered, each is answered by itself: the others can be."""
        try:
            self.answers(batch)
        except BeniError as error:
            if len(batch) > 1 and not any(job.heard for job in batch):
                for job in batch:
                    self._together([job])
            else:
                refusal = error if isinstance(error, Refused) else Refused(400, told(error), "invalid_conversation")
                self._tell(batch, refusal)
        except Exception as error:  # torch's, of any kind; the next batch may be answered
            log.exception("a batch of %d failed", len(batch))
            self._tell(batch, Refused(500, f"The worker has failed: {type(error).__name__}", "internal_error"))

    @staticmethod
    def _tell(batch: Sequence[Job], error: Refused) -> None:
        for job in batch:
            if not job.ended:
                job.tell(error)


def told(error: BeniError) -> str:
    """An error's message without the advice for whoever runs the model."""
    return str(error).partition("\n  fix:")[0][:1000]
