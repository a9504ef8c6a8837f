"""Runs frozen arms on this machine, some at a time, each in a process of its own.

One that dies (also by signal, or for lack of memory) leaves the others alone. Cores and GPUs are divided among those
that run at a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from beni.errors import PREEMPTED, BeniError, Preempted
from beni.launch import jobs, processes
from beni.launch.arm import saved_step
from beni.launch.submit import ArmFailed, settle_arm
from beni.runs.code import environment
from beni.runs.files import LOGS
from beni.runs.lock import in_use
from beni.runs.status import is_finished, read_status
from beni.signals import handling
from beni.training.preempt import SIGNALS


@dataclass
class Running:
    """An arm whose process has been started."""

    number: int
    slot: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None


class Sweep:
    """Frozen arms that this process runs: each is told at once who will start it, and who did, in its ``jobs.jsonl``.

    Args:
        code: snapshot that they run.
        at_a_time: with more than one, what arms print goes to files in the study instead of the terminal.
    """

    def __init__(self, folders: Sequence[Path], code: Path, at_a_time: int, say: Callable[[str], None]) -> None:
        self.folders, self.code, self.at_a_time, self.say = folders, code, at_a_time, say
        self.reasons: list[str | None] = [None] * len(folders)
        self.signals = _Signals()
        self._own = processes.named()
        self._waiting, self._running = list(range(len(folders))), list[Running]()
        self._free = list(range(at_a_time))[::-1]
        for folder in folders:
            logs = {"logs": str(log_of(folder).resolve())} if at_a_time > 1 else {}
            _note(folder, "submitted", backend="local", code=code.name, **self._own, **logs)

    def run(self) -> list[str | None]:
        """Runs the arms, once.

        Returns:
            None for each arm that finished, or the reason why it did not; the reason is in its status.json as well.

        Raises:
            Preempted: when a signal has ended the sweep, and with it the arms that were running; the others wait.
        """
        with handling(SIGNALS, self.signals.note):
            try:
                self._run()
            finally:
                self._leave()
        if (name := self.signal) is not None:
            raise Preempted(f"{name} in arm {self.begun} of {len(self.folders)}; the same command resumes")
        return self.reasons

    @property
    def begun(self) -> int:
        """How many arms have had their turn."""
        return len(self.folders) - len(self._waiting)

    @property
    def signal(self) -> str | None:
        """The name of the signal that has ended the sweep."""
        return self.signals.received[0].name if self.signals.received else None

    def _run(self) -> None:
        """Until no arm runs, and none waits or a signal has come."""
        while self._running or (self._waiting and self.signal is None):
            while self._waiting and self._free and self.signal is None:
                self._start(self._waiting.pop(0))
            if self._running:
                self._end(_first_to_end(self._running))

    def _leave(self) -> None:
        """Notes that this sweep starts no more arms."""
        for number in self._waiting:
            _note(
                self.folders[number], "ended", job=self._own["job"], next=f"{self.signal or 'an error'} ended its sweep"
            )

    def _start(self, number: int) -> None:
        folder, name = self.folders[number], f"arm {number + 1}/{len(self.folders)}"
        if self._is_called_off(folder):
            self.reasons[number] = settle_arm(folder, Preempted(jobs.CANCELLED))
            self.say(f"{name} {jobs.CANCELLED}: {folder.name}")
            return
        self.say(f"{name}: {folder.name}")
        before, step = len(self.signals.received), saved_step(folder)
        one = _start(folder, number, self._free.pop(), self.code, self.at_a_time)
        self._running.append(one)
        self.signals.pass_on_to(self._running)
        _note(folder, "started", **processes.named(one.process.pid), attempt=0, step=step)
        for received in self.signals.received[before:]:
            one.process.send_signal(received)  # it may have come before the process was known
        if self._is_called_off(folder):
            one.process.terminate()

    def _is_called_off(self, folder: Path) -> bool:
        return jobs.is_called_off(jobs.history(folder), self._own["job"])

    def _end(self, one: Running) -> None:
        self._running.remove(one)
        self._free.append(one.slot)
        folder, code = self.folders[one.number], one.process.returncode
        self.reasons[one.number] = _settle(folder, one, f"arm {one.number + 1}/{len(self.folders)}", self.say)
        _note(folder, "ended", job=str(one.process.pid), attempt=0, code=code, step=saved_step(folder))


@contextmanager
def in_this_process(folder: Path, **given: Any) -> Iterator[None]:
    """Notes the start and end of a run that this process takes on, where it is its first process and nobody else works
    in the folder. Before a first start there is none: its status has the time.

    Args:
        given: what else is known of who hands the run over.
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    if rank != "0" or not folder.exists() or in_use(folder) or is_finished(folder):
        yield
        return
    own, code = processes.named(), 0
    _note(folder, "submitted", backend="local", **own, **given)
    _note(folder, "started", **own, attempt=0, step=saved_step(folder))
    try:
        yield
    except BaseException as error:
        kinds = {PREEMPTED: (Preempted, KeyboardInterrupt), 2: BeniError, 1: BaseException}
        code = next(number for number, kind in kinds.items() if isinstance(error, kind))
        raise
    finally:
        _note(folder, "ended", job=own["job"], attempt=0, code=code, step=saved_step(folder))


def _note(folder: Path, event: jobs.Event, **values: Any) -> None:
    with suppress(OSError):  # a folder that is gone, or a full disk: the run itself says so
        jobs.note(folder, event, **values)


def log_of(folder: Path) -> Path:
    """Where a run of this machine prints that is one of several at a time."""
    return folder.parent / LOGS / f"{folder.name}_log.out"


def _start(folder: Path, number: int, slot: int, code: Path, at_a_time: int) -> Running:
    env = os.environ | environment(code) | share_of_gpus(slot, at_a_time)
    log = None
    if at_a_time > 1:
        path = log_of(folder)
        path.parent.mkdir(exist_ok=True)
        log = path.open("ab")
    cores = share_of_cores(slot, at_a_time)
    process = subprocess.Popen(
        [sys.executable, "-m", "beni.launch.job", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    return Running(number, slot, process, log)


def share_of_cores(slot: int, at_a_time: int) -> set[int] | None:
    """Cores for one of ``at_a_time`` processes; None where it may use all, or the system knows no such thing."""
    if at_a_time == 1 or not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if at_a_time >= len(cores):
        return {cores[slot % len(cores)]}
    return set(cores[slot * len(cores) // at_a_time : (slot + 1) * len(cores) // at_a_time])


def share_of_gpus(slot: int, at_a_time: int) -> dict[str, str]:
    """``CUDA_VISIBLE_DEVICES`` for one of ``at_a_time`` processes; empty where nothing is to be divided."""
    if at_a_time == 1:
        return {}
    gpus = visible_gpus()
    own = gpus[slot::at_a_time] or gpus[slot % len(gpus) : slot % len(gpus) + 1] if gpus else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs, as ``CUDA_VISIBLE_DEVICES`` lists them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip()]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]


def call_off(folder: Path, turn: jobs.Turn) -> bool:
    """Ends one run of a sweep on this machine: its process saves and ends, or is not started.

    Args:
        turn: the newest lines of the run.

    Returns:
        Whether the run is one of this machine that works, or waits for a sweep that does.
    """
    if turn.started is None:
        if turn.submitted is None or not processes.is_alive(turn.submitted):
            return False
        jobs.note(folder, "ended", job=turn.submitted["job"], next=jobs.CANCELLED)
        turn = jobs.Turn.of(jobs.history(folder))  # its process may have been started meanwhile
        if turn.started is None:
            return True
    return processes.ask_to_end(turn.started)


def _first_to_end(running: Sequence[Running]) -> Running:
    if len(running) == 1:
        running[0].process.wait()
        return running[0]
    while True:
        for one in running:
            if one.process.poll() is not None:
                return one
        time.sleep(0.1)


def _settle(folder: Path, one: Running, name: str, say: Callable[[str], None]) -> str | None:
    if one.log is not None:
        one.log.close()
    reason = settle_arm(folder, _why(one.process.returncode))
    if reason is not None:
        say(f"{name} {read_status(folder)['state']}: {reason}")
    elif one.log is not None:
        say(f"{name} finished")
    return reason


def _why(code: int) -> BaseException:
    """What to say of a process that has ended without a word of its own."""
    if -code in SIGNALS:  # before the run listened to them
        return Preempted(f"{signal.Signals(-code).name} before the run began; the same command starts it")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return ArmFailed(f"the process ended before the run finished ({how})")


class _Signals:
    """Signals that have come: noted, and passed on to the processes that run."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._running: Sequence[Running] = ()

    def pass_on_to(self, running: Sequence[Running]) -> None:
        self._running = running

    def note(self, number: int, frame: object) -> None:
        self.received.append(signal.Signals(number))
        for one in self._running:
            one.process.send_signal(number)
