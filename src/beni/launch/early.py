"""A signal that comes while a start of a run still loads, before the run listens itself (training/preempt.py)."""

from __future__ import annotations

import signal

from beni.errors import Preempted


def too_early(number: int, frame: object) -> None:
    """Handler of signals that ends the start; told of a signal after the run, without a frame, it does nothing."""
    if frame is not None:
        raise Preempted(f"{signal.Signals(number).name} before the run began; it goes on when it is started again")
