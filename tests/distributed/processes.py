"""Starts the ranks of a distributed test and brings back what each saw."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@cache
def nursery() -> subprocess.Popen[str]:
    """The process that forks ranks; it ends with this one, whose end it sees on its standard input."""
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@dataclass(frozen=True)
class Ranks:
    """Processes that have been started; only one such group at a time."""

    out: Path
    world: int

    def end(self) -> tuple[list[int | None], str]:
        """Their exit codes (None for one whose time was over) and what they said, once all have ended."""
        process = nursery()
        assert process.stdout is not None
        codes = json.loads(process.stdout.readline())
        return codes, "\n".join(Path(f"{self.out}.{rank}.said").read_text() for rank in range(self.world))


def start_ranks(program: Path, settings: dict[str, Any], out: Path, world: int, seconds: int) -> Ranks:
    """Starts ``program SETTINGS.json`` on each of ``world`` ranks for at most ``seconds``."""
    file = out.with_name(f"settings-{out.name}")
    file.write_text(json.dumps(settings | {"out": str(out)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        {
            "variables": {**shared, "RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {},
            "said": f"{out}.{r}.said",
        }
        for r in range(world)
    ]
    request = {"program": str(program), "settings": str(file), "seconds": seconds, "ranks": ranks}
    process = nursery()
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return Ranks(out, world)


def run_ranks(program: Path, settings: dict[str, Any], out: Path, world: int, seconds: int) -> list[dict[str, Any]]:
    """Runs ``program SETTINGS.json`` on each of ``world`` ranks for at most ``seconds``; what each wrote.

    Raises:
        AssertionError: with what the ranks said, when one of them fails.
    """
    codes, said = start_ranks(program, settings, out, world, seconds).end()
    assert codes == [0] * world, f"{codes}\n{said}"
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]
