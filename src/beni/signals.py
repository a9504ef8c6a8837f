"""Handlers of signals for the time of a block: a command that is called inside another program leaves none behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(numbers: Iterable[signal.Signals], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Inside the block these signals call ``handler(number, frame)``; the handlers of before are put back.

    Raises:
        ValueError: outside the main thread, where Python allows no handlers.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, signal.SIG_DFL if one is None else one)
