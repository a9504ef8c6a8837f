"""The folder of a run on disk: who works in it, and how it makes room for another run of the same name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

_ASIDE = ".old"


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
    except PermissionError:  # another user's
        return _is_held(Path(lock.lock_file))


def _is_held(file: Path) -> bool:
    """Whether a process holds a lock that this one may only read: a shared lock waits for an exclusive one as well.

    Raises:
        PermissionError: when it may not even do that.
    """
    import fcntl

    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(opened, fcntl.LOCK_UN)
    return False


def set_aside(folder: Path) -> None:
    """Moves it to ``<name>.old1`` or the next number that is free; nothing where there is none."""
    if not folder.exists():
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}{_ASIDE}{number}")).exists():
        number += 1
    shutil.move(folder, kept)


def is_set_aside(folder: Path) -> bool:
    """Whether it is what ``set_aside`` leaves beside a run that was started over."""
    return re.search(rf"{re.escape(_ASIDE)}\d+$", folder.name) is not None
