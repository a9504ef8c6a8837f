"""The folder of a run on disk: who works in it, and how it makes room for another run of the same name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def lock_of(folder: Path) -> FileLock:
    """The lock that a run holds while it works in ``folder``; the folder's parent must exist."""
    return FileLock(folder.parent / f".{folder.name}.lock")


def in_use(folder: Path) -> bool:
    """Whether a process works in it now; a status that says so may be that of one that was killed."""
    lock = lock_of(folder)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def set_aside(folder: Path) -> None:
    """Moves it to ``<name>.old1`` or the next number that is free; nothing where there is none."""
    if not folder.exists():
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    shutil.move(folder, kept)


def that_goes_on(run: dict[str, Any]) -> dict[str, Any]:
    """What a run folder keeps of a run: once it has begun, whoever runs the frozen config goes on with it."""
    return {**run, "checkpoint": {**run["checkpoint"], "resume": "auto"}}
