"""Starts the ranks of a distributed test and brings back what each saw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_ranks(program: Path, settings: dict[str, Any], out: Path, world: int, seconds: int) -> list[dict[str, Any]]:
    """Runs ``program SETTINGS.json`` on each of ``world`` ranks for at most ``seconds``; what each wrote.

    Raises:
        AssertionError: with what the ranks said, when one of them fails.
    """
    file = out.with_name(f"settings-{out.name}")
    file.write_text(json.dumps(settings | {"out": str(out)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(file)],
            env={**os.environ, **({**shared, "RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]
    try:
        errors = [rank.communicate(timeout=seconds)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors)
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]
