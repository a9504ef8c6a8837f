"""The watchdog: a run in which a rank hangs says which, where, and with which Python stack, and ends.

The main thread of each rank tells the step and phase that it has come to (``beat``); that costs an assignment. A
thread passes this on through the process group's store and reads the others'. Ranks wait for each other in collectives,
so when one hangs, all stand still; the one that hangs is the one that has come least far. When that one has not moved
for its phase's allowance, every rank writes what it knows to stderr, the lowest rank that still answers writes it to
status.json, and all end with exit code 70.

A single process is watched alike (a loader that hangs). Time in which the machine or the job was suspended does not
count: the thread counts its own ticks.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import Any, cast

import torch.distributed as dist

from beni.errors import HUNG

PHASES = {"start": 10.0, "data": 1.0, "step": 1.0, "save": 10.0, "evaluate": 5.0, "end": 10.0}
"""Phases in the order of a step, and how many times ``log.watchdog_s`` each may last without a beat."""
FIRST = 10.0
"""How many times ``log.watchdog_s`` any phase of the first step after a start may last: kernels are compiled then."""
LONGEST = 3.0
"""How many times the longest that the phase has lasted until now is no hang either: a slow machine is no hung one."""
LAST_WORDS = 5.0
"""Seconds for which a rank waits for the stacks of the others."""
DONE = "done"


@dataclass(frozen=True)
class Place:
    """How far a rank has come.

    Attributes:
        beats: how often it has told, so that a phase with beats of its own is seen to move.
        first: whether it has not finished a step since it was started.
        longest: seconds that the phase has lasted at most until now, between two beats.
    """

    step: int = 0
    phase: str = "start"
    beats: int = 0
    first: bool = True
    longest: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        """Ranks wait for each other, so the one with the smallest holds up all."""
        return self.step, list(PHASES).index(self.phase)

    def allowance(self, seconds: float) -> float:
        """Seconds without a beat that are no hang."""
        return max(seconds * PHASES[self.phase], seconds * FIRST if self.first else 0.0, LONGEST * self.longest)


class Watchdog:
    """Context manager around everything in which a rank may hang.

    Args:
        seconds: allowance of a usual phase; 0 watches nothing.
        rank: of this process.
        world: number of processes; with more than one, it is entered inside their process group.
        report: called by the lowest rank that answers, with the message and a stack, before its process ends.
        leave: ends the process.
    """

    def __init__(
        self,
        seconds: float,
        rank: int = 0,
        world: int = 1,
        report: Callable[[str, str], None] = lambda message, stack: None,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.seconds, self.rank, self.world = seconds, rank, world
        self.report, self.leave = report, leave
        self._place, self._since = Place(), time.monotonic()
        self._longest: dict[str, float] = {}
        self._begun: int | None = None
        self._tick = min(1.0, seconds / 10)
        self._stop = threading.Event()
        self._store: Any = None
        self._messenger: threading.Thread | None = None
        self._others: dict[int, Place | None] = {}
        self._heard = 0

    def __enter__(self) -> Watchdog:
        if self.seconds > 0:
            if self.world > 1:
                # a connection of its own: on the other one the main thread may wait for as long as it likes
                self._store = cast(Any, dist.distributed_c10d._get_default_store()).clone()
                self._messenger = _background(self._exchange)
            _background(self._watch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._messenger is not None:
            self._messenger.join(LAST_WORDS)  # it says that this rank is done, so that nobody waits for it

    def beat(self, phase: str | None = None, step: int | None = None) -> None:
        """This rank has come to a phase of a step; without arguments, it has moved on in the same one."""
        last, now = self._place, time.monotonic()
        self._longest[last.phase] = max(self._longest.get(last.phase, 0.0), now - self._since)
        phase = last.phase if phase is None else phase
        step = last.step if step is None else step
        if phase == "data" and self._begun is None:
            self._begun = step
        first = self._begun is None or step <= self._begun
        self._since = now
        self._place = Place(step, phase, last.beats + 1, first, self._longest.get(phase, 0.0))

    def _watch(self) -> None:
        """Until this rank is done, or something hangs. Asks nobody, so nobody holds it up."""
        places = dict.fromkeys(range(self.world), Place())
        still = dict.fromkeys(range(self.world), 0.0)
        silent, heard, before = 0.0, 0, time.monotonic()
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self._tick), now  # a job that was suspended has not hung
            silent, heard = (0.0, self._heard) if self._heard != heard else (silent + passed, heard)
            for rank, place in {self.rank: self._place, **self._others}.items():
                if place is None:
                    places.pop(rank, None)
                elif rank in places:
                    still[rank] = 0.0 if place != places[rank] else still[rank]
                    places[rank] = place
            still = {rank: still[rank] + passed for rank in places}
            if hanging := _hanging(places, still, self.seconds):
                gone = self._store is not None and silent > self.seconds / 2 and 0 in places
                self._end([0] if gone else hanging, places, still)
                return

    def _exchange(self) -> None:
        """Tells this rank's place and hears those of the others, again and again; waits if the store's host hangs."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        with suppress(RuntimeError):  # the host is gone
            while not self._stop.wait(self._tick):
                self._store.set(_place_of(self.rank), json.dumps(astuple(self._place)))
                told = {rank: self._told(_place_of(rank)) for rank in others}
                self._others |= {rank: _read(text) for rank, text in told.items() if text}
                self._heard += 1
            self._store.set(_place_of(self.rank), DONE)

    def _told(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _end(self, hanging: list[int], places: dict[int, Place], still: dict[int, float]) -> None:
        """Tells what hangs, on stderr and by ``report``, and ends this process and its loaders."""
        stacks = self._stacks()
        lines = [
            f"rank {rank} hangs in step {place.step + 1}, phase {place.phase}: no progress for {still[rank]:.0f} s"
            + ("" if rank in stacks else ", and its process does not answer")
            for rank in sorted(hanging, key=lambda rank: rank in stacks)
            for place in (places[rank],)
        ]
        others = [f"rank {r}: step {p.step + 1}, {p.phase}" for r, p in sorted(places.items()) if r not in hanging]
        message = "\n".join([*lines, *([f"the others are waiting: {'; '.join(others)}"] if others else [])])
        message += "\n  fix: see the stack; log.watchdog_s is the limit in seconds, 0 disables it"
        shown = [rank for rank in sorted(hanging) if rank in stacks] or [self.rank]
        stack = "\n".join(f"main thread of rank {rank}:\n{stacks[rank]}" for rank in shown)
        out = sys.__stderr__
        if out is not None:
            with suppress(OSError, ValueError):  # a console that fails must not keep the process from its end
                print(f"Hang: {message}\n{stack}\nall threads of rank {self.rank}:", file=out, flush=True)
            faulthandler.dump_traceback(out, all_threads=True)
        if self.rank == min(stacks):
            self.report(message, stack)
        for child in multiprocessing.active_children():
            child.kill()
        self.leave(HUNG)

    def _stacks(self) -> dict[int, str]:
        """What the main threads of the ranks are doing, of those that answer in time."""
        stacks = {self.rank: _main_stack()}
        deadline = time.monotonic() + LAST_WORDS

        def collect() -> None:
            with suppress(RuntimeError):
                self._store.set(_stack_of(self.rank), stacks[self.rank])
                while len(stacks) < self.world and time.monotonic() < deadline:
                    told = {rank: self._told(_stack_of(rank)) for rank in range(self.world) if rank not in stacks}
                    stacks.update({rank: text for rank, text in told.items() if text})
                    time.sleep(self._tick / 2)

        if self._store is not None:
            _background(collect).join(LAST_WORDS)
        return dict(stacks)


def _hanging(places: dict[int, Place], still: dict[int, float], seconds: float) -> list[int]:
    """The ranks that have come least far and stand still, once one of them has done so for longer than it may.

    Of ranks in one phase the one that waits for another may have been seen to stand still first: both are named.
    """
    least = min((place.order for place in places.values()), default=None)
    shares = {r: still[r] / p.allowance(seconds) for r, p in places.items() if p.order == least}
    return [rank for rank, share in shares.items() if share > 0.5] if max(shares.values(), default=0) > 1 else []


def _background(work: Callable[[], None]) -> threading.Thread:
    """A thread that keeps no process alive."""
    thread = threading.Thread(target=work, name="watchdog", daemon=True)
    thread.start()
    return thread


def _read(text: str) -> Place | None:
    return None if text == DONE else Place(*json.loads(text))


def _main_stack() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "unknown"


def _place_of(rank: int) -> str:
    return f"beni/watchdog/place/{rank}"


def _stack_of(rank: int) -> str:
    return f"beni/watchdog/stack/{rank}"
