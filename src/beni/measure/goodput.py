"""Where the wall time of a run goes. The parts sum to the whole: at every moment exactly one of them is running.

On a GPU the host runs ahead of the device, so what happens inside a step (copies to the device, collectives) is timed
by events on the device's stream and read when a line is logged; it is taken from the compute of the same time. Events
cost no synchronisation. Collectives that FSDP or DDP hide behind a backward pass are compute here, also where they are
not hidden: the trace (``log.profile``) tells them apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

PARTS = ("data", "copy", "compute", "communication", "checkpoint", "evaluation", "restart", "other")
"""Waiting for the next batch; copying it to the device; forward, backward and update; collectives that nothing hides;
waiting for a checkpoint; evaluation; starting, and what was computed and lost when a run died or went back; and the
rest: logs."""

GOOD = "compute"


class Goodput:
    """A clock with a hand for each part.

    Args:
        device: on which steps are computed.
        before: seconds by part of the run until the checkpoint it goes on from.
        spent: seconds that the run took until ``started``, with what it did after that checkpoint.
        started: reading of ``clock`` when this process began, or went back to that checkpoint; what passed since then
            was starting.
    """

    def __init__(
        self,
        device: torch.device,
        before: Mapping[str, float] | None = None,
        spent: float = 0.0,
        started: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cuda, self._clock = device.type == "cuda", clock
        self.seconds = dict.fromkeys(PARTS, 0.0) | dict(before or {})
        self.seconds["restart"] += max(0.0, spent - sum(self.seconds.values()))
        self._part, self._mark = "restart", clock() if started is None else started
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def carried_over(self) -> tuple[float, float]:
        """``spent`` and ``started`` of the clock that goes on from here, when the run goes back to a checkpoint."""
        return sum(self.split().values()), self._mark

    def go(self, part: str) -> None:
        """The wall time from now on belongs to this part."""
        now = self._clock()
        self.seconds[self._part] += now - self._mark
        self._part, self._mark = part, now

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """It is this part inside the block, and what it was before after it."""
        before = self._part
        self.go(part)
        try:
            yield
        finally:
            self.go(before)

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """The time of the device inside the block, which lies in a step, belongs to this part."""
        if not self._cuda:
            with self.span(part):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((part, begin, end))

    def split(self) -> dict[str, float]:
        """Seconds by part until now. On a GPU it waits for the last event: for log steps."""
        self.go(self._part)
        for part, begin, end in self._events:
            end.synchronize()
            taken = min(begin.elapsed_time(end) / 1000, self.seconds[GOOD])
            self.seconds[part] += taken
            self.seconds[GOOD] -= taken
        self._events.clear()
        return dict(self.seconds)


def fractions(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part -> shares that sum to one."""
    whole = sum(seconds.values())
    return {part: value / whole if whole else 0.0 for part, value in seconds.items()}
