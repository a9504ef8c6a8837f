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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from beni.errors import Preempted
from beni.launch import jobs
from beni.launch.submit import ArmFailed, settle_arm
from beni.runs.code import environment
from beni.runs.files import LOGS
from beni.runs.status import read_status
from beni.signals import handling
from beni.training.preempt import SIGNALS

HERE = os.uname().nodename
"""Name of this machine."""


@dataclass
class Running:
    """An arm whose process has been started."""

    number: int
    slot: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None


def run_arms(folders: Sequence[Path], code: Path, at_a_time: int, say: Callable[[str], None]) -> list[str | None]:
    """Runs frozen arms.

    Args:
        code: snapshot that they run.
        at_a_time: with more than one, what arms print goes to files in the study instead of the terminal.

    Returns:
        None for each arm that finished, or the reason why it did not; the reason is in its status.json as well.

    Raises:
        Preempted: when a signal has ended the sweep, and with it the arms that were running; the others wait.
    """
    total = len(folders)
    reasons: list[str | None] = [None] * total
    waiting, running, free = list(range(total)), list[Running](), list(range(at_a_time))[::-1]
    signals = _Signals()
    with handling(SIGNALS, signals.note):
        while running or (waiting and not signals.received):
            while waiting and free and not signals.received:
                number, slot = waiting.pop(0), free.pop()
                say(f"arm {number + 1}/{total}: {folders[number].name}")
                running.append(_start(folders[number], number, slot, code, at_a_time))
                signals.pass_on_to(running)
            one = _first_to_end(running)
            running.remove(one)
            free.append(one.slot)
            reasons[one.number] = _settle(folders[one.number], one, f"arm {one.number + 1}/{total}", say)
    if signals.received:
        begun = total - len(waiting)
        raise Preempted(f"{signals.received[0].name} in arm {begun} of {total}; the same command resumes")
    return reasons


def _start(folder: Path, number: int, slot: int, code: Path, at_a_time: int) -> Running:
    env = os.environ | environment(code) | share_of_gpus(slot, at_a_time)
    log, told = None, {}
    if at_a_time > 1:
        path = folder.parent / LOGS / f"{folder.name}_log.out"
        path.parent.mkdir(exist_ok=True)
        log, told = path.open("ab"), {"logs": str(path.resolve())}
    cores = share_of_cores(slot, at_a_time)
    process = subprocess.Popen(
        [sys.executable, "-m", "beni.launch.job", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    with suppress(OSError):  # a folder that is gone: the process says so
        jobs.note(folder, "submitted", backend="local", job=str(process.pid), node=HERE, code=code.name, **told)
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


def end(folder: Path, submitted: Mapping[str, Any]) -> bool:
    """Asks the process of a run to save and end.

    Args:
        submitted: the line of ``jobs.jsonl`` about the process.

    Returns:
        Whether it is one of this machine that works on the run.
    """
    if submitted.get("node") != HERE:
        return False
    try:
        process = psutil.Process(int(submitted["job"]))
        if folder.name not in {os.path.basename(word) for word in process.cmdline()}:
            return False
        process.terminate()
    except psutil.Error:
        return False
    return True


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
    code = one.process.returncode
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    reason = settle_arm(folder, ArmFailed(f"the process ended before the run finished ({how})"))
    if reason is not None:
        say(f"{name} {read_status(folder)['state']}: {reason}")
    elif one.log is not None:
        say(f"{name} finished")
    return reason


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
