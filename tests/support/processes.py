"""Starts programs, on one rank or several, and brings back what each said; they are forked, and spared the imports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@cache
def nursery() -> subprocess.Popen[str]:
    """The process that forks ranks; it ends with this one, whose end it sees on its standard input."""
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


@dataclass(frozen=True)
class Ranks:
    """Processes that have been started; only one such group at a time."""

    out: Path
    world: int

    def end(self) -> tuple[list[int | None], str]:
        """Their exit codes (None for one whose time was over) and what they said, once all have ended."""
        return _codes(), "\n".join(Path(f"{self.out}.{rank}.said").read_text() for rank in range(self.world))


def _request(
    program: str, arguments: Sequence[str], folder: Path, files: Sequence[Mapping[str, str]], seconds: int
) -> None:
    """Asks for a rank for each of ``files`` (where it says what)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = len(files)
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    trusted = {name: os.environ[name] for name in ("BENI_TRUSTED",) if name in os.environ}
    ranks = [
        {**each, "variables": trusted | ({**shared, "RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {})}
        for r, each in enumerate(files)
    ]
    request = {"program": program, "arguments": list(arguments), "folder": str(folder), "seconds": seconds}
    process = nursery()
    assert process.stdin is not None
    process.stdin.write(json.dumps(request | {"ranks": ranks}) + "\n")
    process.stdin.flush()


def _codes() -> list[int | None]:
    """Exit codes of the ranks that were asked for, once all have ended; if the wait is cut short, they end with it."""
    process = nursery()
    assert process.stdout is not None
    try:
        return json.loads(process.stdout.readline())
    except BaseException:  # the answer would be taken for the next request's
        os.killpg(process.pid, signal.SIGKILL)
        nursery.cache_clear()
        raise


def run_module(
    module: str, *arguments: str, cwd: Path | None = None, world: int = 1, seconds: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` on each of ``world`` ranks, for at most ``seconds``.

    Returns:
        What rank 0 said, what all ranks told on stderr, and the first exit code that is not 0 (-9 where time was over).
    """
    with tempfile.TemporaryDirectory() as name:
        files = [{"said": f"{name}/{r}.said", "told": f"{name}/{r}.told"} for r in range(world)]
        _request(module, arguments, cwd or Path.cwd(), files, seconds)
        codes = [-9 if code is None else code for code in _codes()]
        said, told = ([Path(file[key]).read_text() for file in files] for key in ("said", "told"))
    failed = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess([module, *arguments], failed, said[0], "\n".join(told))


def start_ranks(program: Path, settings: dict[str, Any], out: Path, world: int, seconds: int) -> Ranks:
    """Starts ``program SETTINGS.json`` on each of ``world`` ranks for at most ``seconds``."""
    file = out.with_name(f"settings-{out.name}")
    file.write_text(json.dumps(settings | {"out": str(out)}))
    said = [f"{out}.{rank}.said" for rank in range(world)]
    for name in said:
        Path(name).unlink(missing_ok=True)
    _request(str(program), [str(file)], Path.cwd(), [{"said": name, "told": name} for name in said], seconds)
    return Ranks(out, world)


def run_ranks(program: Path, settings: dict[str, Any], out: Path, world: int, seconds: int) -> list[dict[str, Any]]:
    """Runs ``program SETTINGS.json`` on each of ``world`` ranks for at most ``seconds``; what each wrote.

    Raises:
        AssertionError: with what the ranks said, when one of them fails.
    """
    codes, said = start_ranks(program, settings, out, world, seconds).end()
    assert codes == [0] * world, f"{codes}\n{said}"
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]
