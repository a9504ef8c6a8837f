"""What SLURM says of jobs, asked by whoever follows them and by jobs themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable


def scheduler_states(ids: Iterable[str]) -> dict[str, dict[str, str]] | None:
    """Job -> ``state``, ``reason``, ``node`` and ``exit`` as SLURM has them: squeue for what is waiting or running,
    sacct for the rest. None where SLURM does not answer.
    """
    wanted = sorted({one.split("_")[0] for one in ids})
    if not wanted:
        return {}
    states: dict[str, dict[str, str]] = {}
    past = ask(["sacct", "-nPXD", "-o", "JobID,State,Reason,NodeList,ExitCode", "-j", ",".join(wanted)])
    for line in (past or "").splitlines():
        job, state, reason, node, code = (*line.split("|"), "", "", "", "")[:5]
        states[job] = {"state": state.split()[0] if state else "", "reason": reason, "node": node, "exit": code}
    live = ask(["squeue", "-h", "-r", "-o", "%i|%T|%r|%N", "-j", ",".join(wanted)])
    for line in (live or "").splitlines():
        job, state, reason, node = (*line.split("|"), "", "", "")[:4]
        states[job] = {"state": state, "reason": reason, "node": node, "exit": ""}
    return None if past is None and live is None else states


def ask(command: list[str]) -> str | None:
    """What a command of SLURM's prints; None where there is none, or it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
