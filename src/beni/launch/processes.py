"""Processes of this machine, as ``jobs.jsonl`` names them: number, machine and birth, since numbers are used again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil

HERE = os.uname().nodename
"""Name of this machine."""

SAME_S = 1.0
"""Seconds by which the birth of one process may differ between two readings: it is counted from the machine's start."""


def named(number: int | None = None) -> dict[str, Any]:
    """What a line of ``jobs.jsonl`` says of a process, so that no other one is ever taken for it.

    Args:
        number: of a process of this machine; None takes this process.

    Returns:
        ``job``, ``node`` and ``born`` (seconds since 1970).
    """
    process = psutil.Process(number)
    return {"job": str(process.pid), "node": HERE, "born": process.create_time()}


def is_alive(line: Mapping[str, Any]) -> bool | None:
    """Whether the process of a line works; None where it is one of another machine."""
    return None if line.get("node") != HERE else _find(line) is not None


def ask_to_end(line: Mapping[str, Any]) -> bool:
    """Asks the process of a line to save and end; whether it is one of this machine that works."""
    process = _find(line) if is_alive(line) else None
    if process is None:
        return False
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return False
    return True


def _find(line: Mapping[str, Any]) -> psutil.Process | None:
    born = line.get("born")
    if not isinstance(born, int | float):
        return None
    try:
        process = psutil.Process(int(line["job"]))
        own = abs(process.create_time() - born) <= SAME_S and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, KeyError):
        return None
    return process if own else None
