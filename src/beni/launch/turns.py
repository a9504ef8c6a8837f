"""Whose turn it is to launch runs of a study: one command at a time finds out what is missing, freezes and submits it.
A second one waits, and then finds it submitted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from beni.errors import ResourceError
from beni.runs.backlog import room_for
from beni.runs.identity import now

LOCK = ".launching.lock"
"""In the study, for the time of a turn; it names the process whose turn it is."""
TOLD_AFTER_S = 3.0
PATIENCE_S = 900.0
"""Seconds that a command waits: a thousand arms are submitted in less."""


@contextmanager
def turn(studies: Iterable[Path], say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block nobody else has a turn in these studies.

    Raises:
        ResourceError: when another command has one for ``PATIENCE_S``, or a study cannot be written.
    """
    with ExitStack() as turns:
        for study in sorted(set(studies)):  # in one order, lest two wait for each other
            turns.enter_context(_turn(study, say))
        yield


@contextmanager
def _turn(study: Path, say: Callable[[str], None]) -> Iterator[None]:
    path = study / LOCK
    with room_for(study):
        study.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    _wait_for(lock, study, path, say)
    try:
        with room_for(study):
            path.write_text(f"process {os.getpid()} on {os.uname().nodename}, since {now()}", encoding="utf-8")
        yield
    finally:
        # While it is held: who waits for it sees that the file has gone, and makes another.
        path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # a study that is not empty
            study.rmdir()


def _wait_for(lock: FileLock, study: Path, path: Path, say: Callable[[str], None]) -> None:
    end = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            lock.acquire(timeout=TOLD_AFTER_S)
            return
        except Timeout:
            if time.monotonic() > end:
                raise ResourceError(
                    f"{study}: another command has been launching its runs for long: {_holder(path)}\n"
                    "  fix: wait until it has ended, or end it, and give the command again"
                ) from None
        except OSError as error:
            with room_for(path):
                raise error
        if not told:
            say(f"another command launches runs of {study}: {_holder(path)}; this one goes on after it")
            told = True


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "it has not said which"
    except OSError:
        return "it has just ended"
