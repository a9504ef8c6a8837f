"""One request and as many workers as it takes: an answer that breaks off goes on with another worker.

What has been sent cannot be taken back. So the other worker answers from the beginning, which gives the same text where
the token is the likeliest one or drawn with a seed, and is sent on from where the first one broke off. Should it say
something else, the request fails: nobody is given half an answer of one and half of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from beni.serve.engine import Piece
from beni.serve.refused import Refused
from beni.serve.workers import Worker, WorkerErred, WorkerFailed, Workers, WorkerSilent

ATTEMPTS = 3
"""Workers that a request is given to, one after another: it may be what has ended them."""
PATIENCE = 10.0
"""Seconds for which a request waits for a worker to come back."""
STEP = 0.1
"""Seconds between two looks for one."""


class Left(Exception):
    """Nobody waits for the answer any more."""


class Relay:
    """Gives requests to workers.

    Args:
        workers: all of them.
        timeout: seconds for an answer.
    """

    def __init__(self, workers: Workers, timeout: float) -> None:
        self.workers, self.timeout = workers, timeout

    def answer(self, model: str, body: bytes, left: Callable[[], bool] = lambda: False) -> Generator[Piece]:
        """The pieces of an answer, the last of which has finish and usage.

        Args:
            body: of a request for a stream with usage.
            left: whether the one who asked has gone.

        Raises:
            Refused: when no worker answers in time, or the request is wrong.
            Left: when the one who asked has gone.
        """
        until, tried, sent, problem = time.monotonic() + self.timeout, list[Worker](), "", ""
        while len(tried) < ATTEMPTS:
            self._wait(model, tried, until, left)
            with self.workers.chosen(model, tried[-1:]) as worker:
                if worker is None:
                    continue
                try:
                    for piece in self._asked(worker, body, sent, until, left):
                        sent += piece.text
                        yield piece
                    return
                except WorkerFailed as error:
                    if isinstance(error, WorkerSilent) and worker.up:  # at work: another one would be no faster
                        raise Refused(504, "The model did not answer in time", "timeout") from None
                    problem = str(error)
                    self.workers.failed(worker)
                    self.workers.metrics.retried.inc()
                    tried.append(worker)
        raise Refused(503, "The workers that were asked have failed", "worker_failed", wait=1.0) from WorkerFailed(
            problem
        )

    def once(self, model: str, path: str, body: bytes, left: Callable[[], bool] = lambda: False) -> Any:
        """The answer to another request than one for a chat; as above. An error of a worker is final."""
        until, tried = time.monotonic() + self.timeout, list[Worker]()
        while len(tried) < ATTEMPTS:
            self._wait(model, tried, until, left)
            with self.workers.chosen(model, tried[-1:]) as worker:
                if worker is None:
                    continue
                try:
                    return self.workers.post(worker, path, body, partial(_require_wanted, until, left))
                except WorkerErred:  # others would do the same, and this one may go on to answer chats
                    raise Refused(502, "The worker that was asked has failed", "worker_failed") from None
                except WorkerFailed as error:
                    if isinstance(error, WorkerSilent) and worker.up:
                        raise Refused(504, "The model did not answer in time", "timeout") from None
                    self.workers.failed(worker)
                    self.workers.metrics.retried.inc()
                    tried.append(worker)
        raise Refused(503, "The workers that were asked have failed", "worker_failed", wait=1.0)

    def _asked(
        self, worker: Worker, body: bytes, sent: str, until: float, left: Callable[[], bool]
    ) -> Generator[Piece]:
        """What comes beyond the text that was sent already."""
        said, open_ = "", len(sent)
        for piece in self.workers.ask(worker, body):
            _require_wanted(until, left)
            said += piece.text
            same = said.startswith(sent) if len(said) >= open_ else sent.startswith(said)
            if not same or (piece.finish is not None and len(said) < open_):
                raise Refused(502, "A worker failed in the middle of the answer; ask again", "worker_failed")
            new = said[max(open_, len(said) - len(piece.text)) :]
            if new or piece.finish is not None:
                yield Piece(new, piece.finish, piece.usage)

    def _wait(self, model: str, tried: list[Worker], until: float, left: Callable[[], bool]) -> None:
        """Until a worker can be asked that was not the last one to fail, or that one has come back."""
        end = min(until, time.monotonic() + PATIENCE)
        while True:
            there = [one for one in self.workers.all if one.up and model in one.models]
            if any(one not in tried[-1:] for one in there):
                return
            if tried and there:
                tried[-1:] = [Worker("")]  # it is back, and may be asked again
                return
            if left():
                raise Left
            if time.monotonic() > end:
                raise Refused(503, "No worker is there to answer", "no_worker", wait=2.0)
            time.sleep(STEP)


def _require_wanted(until: float, left: Callable[[], bool]) -> None:
    """Return while there is time for an answer, and somebody waits for it."""
    if left():
        raise Left
    if time.monotonic() > until:
        raise Refused(504, "The answer took too long", "timeout")
