"""The arms of a sweep: checked together, frozen together, then run one after another on this machine.

Each arm is a process of its own, so one that dies (also by signal, or for lack of memory) leaves the others alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from beni.config.identity import now, run_folder
from beni.errors import BeniError, CompositionError


class ArmFailed(BeniError):
    """At least one arm of a sweep did not finish."""


def check_arms(runs: Sequence[dict[str, Any]]) -> None:
    """Spec-propagates every arm in one further process, before any of them starts.

    Raises:
        CompositionError: of the first arm that is impossible; nothing has been written then.
    """
    done = subprocess.run(
        [sys.executable, "-m", "beni.launch.job", "--check"],
        input=json.dumps(list(runs)),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = done.stderr.strip()
        raise CompositionError("E-ARM", f"no arm was started, since one is impossible:\n  {reason}")


def freeze_arm(run: dict[str, Any]) -> Path:
    """Writes the frozen config and a queued status into the arm's run folder, unless it has begun already."""
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").is_file():
        (folder / "config.yaml").write_text(yaml.safe_dump(run, sort_keys=False, allow_unicode=True))
    if not (folder / "status.json").is_file():
        _write_status(folder, state="queued", step=0, steps=run["train"]["steps"], error=None)
    return folder


def run_arms(folders: Iterable[Path], say: Any) -> list[tuple[Path, str | None]]:
    """Runs frozen arms one after another.

    Returns:
        Each folder with None, or the reason why it did not finish; the reason is in its status.json as well.
    """
    results: list[tuple[Path, str | None]] = []
    folders = list(folders)
    for number, folder in enumerate(folders, start=1):
        say(f"arm {number}/{len(folders)}: {folder.name}")
        done = subprocess.run([sys.executable, "-m", "beni.launch.job", str(folder)], stdin=subprocess.DEVNULL)
        status = _read_status(folder)
        reason = None
        if status.get("state") != "finished":
            reason = _reason(folder, status, done.returncode)
            say(f"arm {number}/{len(folders)} failed: {reason}")
        results.append((folder, reason))
    return results


def _reason(folder: Path, status: dict[str, Any], code: int) -> str:
    """Why an arm did not finish; written into status.json when the process could not do it itself."""
    if status.get("state") == "failed" and status.get("error"):
        return str(status["error"]["message"]).splitlines()[0]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    reason = f"the process ended before the run did ({how})"
    _write_status(folder, **status | {"state": "failed", "error": _error(reason)})
    return reason


def _error(message: str) -> dict[str, str]:
    return {"type": "ArmFailed", "message": message, "traceback": ""}


def _read_status(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def _write_status(folder: Path, **values: Any) -> None:
    partial = folder / ".status.json.partial"
    partial.write_text(json.dumps(values | {"updated": now()}, indent=1))
    os.replace(partial, folder / "status.json")
