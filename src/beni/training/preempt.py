"""Signals that end a run early and gently: finish the step, save, say so, and let the same command go on.

SIGTERM (a scheduler, ``kill``), SIGUSR1 and SIGUSR2 (SLURM's ``--signal``) and SIGINT (Ctrl-C) on any rank are noted
while steps are taken, and the ranks agree on them in a collective that every step has anyway. Before and after the
steps there is nothing to save: there they end a run of one process where it is, and one of several where its ranks
meet next, so that none is left waiting for one that has gone. Ctrl-C again means at once.

When the run has ended, whoever handled the signal before is told, without a frame (launch/arm.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from beni.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 1.0
"""Seconds after which Ctrl-C counts as another one. torchrun repeats what the terminal has sent to every rank."""


class Preemption:
    """Context manager that notes signals. Outside the main thread, where Python allows no handlers, it notes none.

    Args:
        any_rank: of whether this process has been asked to end makes whether any process of the run has; a collective.
            None where there is no other.
    """

    def __init__(self, any_rank: Callable[[bool], bool] | None = None) -> None:
        self.received: list[signal.Signals] = []
        self._first = 0.0
        self._any_rank = any_rank
        self._deferred = any_rank is not None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether this rank has been asked to end."""
        return bool(self.received)

    @property
    def name(self) -> str:
        """The name of the signal that came first; on a rank that got none, a word for that."""
        return self.received[0].name if self.received else "a signal to another process"

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a signal is noted and nothing else; who takes the steps asks for it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def sync_point(self) -> None:
        """Called by all ranks alike, between steps: ends the run on each when any has been asked to end.

        Raises:
            Preempted: then.
        """
        if self.asked if self._any_rank is None else self._any_rank(self.asked):
            raise self._elsewhere()

    def __enter__(self) -> Preemption:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if kind is not None and issubclass(kind, Preempted):
            for number in dict.fromkeys(self.received):
                handler = self._before.get(number)
                if callable(handler) and handler is not signal.default_int_handler:
                    handler(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader process that was forked with this handler: its parent ends it
        now, first = time.monotonic(), not self.received
        if number == signal.SIGINT and not first and now - self._first > AGAIN:
            raise KeyboardInterrupt
        self._first = now if first else self._first
        self.received.append(signal.Signals(number))
        if first and not self._deferred:
            raise self._elsewhere()

    def _elsewhere(self) -> Preempted:
        return Preempted(f"{self.name} before the first or after the last step; the same command resumes")
