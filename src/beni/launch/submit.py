"""The arms of a sweep before and after their jobs: checked together, frozen together, settled once they have ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beni.config.environment import launcher_secret_problems
from beni.errors import BeniError, ConfigError
from beni.launch.estimate import Judged
from beni.runs import shape
from beni.runs.backlog import room_for
from beni.runs.files import ORIGIN, read_json, replace, to_json
from beni.runs.folder import require_own
from beni.runs.frozen import save_frozen
from beni.runs.identity import run_folder
from beni.runs.lock import in_use, set_aside
from beni.runs.status import ending, first_line, read_status, write_status

FIRST = ("launched", "place")
"""Keys of origin.json that stay those of the first sweep that launched the run: when, and where it stood there."""


class ImpossibleArm(BeniError):
    """An arm that could never run; no arm of its sweep is started."""


class ArmFailed(BeniError):
    """At least one arm of a sweep did not finish."""


def check_arms(runs: Sequence[dict[str, Any]]) -> list[Judged]:
    """Spec-propagates every arm in one further process, before any of them starts.

    Returns:
        What each would cost.

    Raises:
        ImpossibleArm: with every arm that is impossible; nothing has been written then.
    """
    done = subprocess.run(
        [sys.executable, "-m", "beni.launch.job", "--check"],
        input=json.dumps(list(runs)),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"checking the arms ended with exit code {done.returncode}:\n{done.stderr}")
    found: list[Judged] = json.loads(done.stdout.splitlines()[-1])
    reasons = [f"{run_folder(run).name}: {p}" for run, one in zip(runs, found, strict=True) if (p := one["problem"])]
    if reasons:
        shown = "\n".join(reasons[:5]) + (f"\nand {len(reasons) - 5} more" if len(reasons) > 5 else "")
        raise ImpossibleArm(f"no arm was started, since {len(reasons)} of {len(runs)} are invalid\n{shown}")
    return found


def freeze_arm(run: dict[str, Any], origin: Mapping[str, Any] | None = None) -> Path:
    """Writes the frozen config and a queued status into the arm's run folder, unless it is finished, or a process works
    in it. With ``checkpoint.resume=never`` what stands there is set aside first.

    Args:
        origin: what the arm's process cannot know (runs/identity.py).

    Raises:
        ConfigError: when its launcher holds a password.
        ResumeError: when another run stands there, or a damaged one.
        ResourceError: when the disk does not take it.
    """
    if problems := launcher_secret_problems(run):  # retry takes values that were not composed
        raise ConfigError("\n".join(problems))
    folder = run_folder(run)
    with room_for(folder):
        _freeze(folder, run, origin)
    return folder


def _freeze(folder: Path, run: dict[str, Any], origin: Mapping[str, Any] | None) -> None:
    if in_use(folder):
        return
    if run["checkpoint"]["resume"] == "never":
        set_aside(folder)
    require_own(folder, run)
    status = read_status(folder)
    if status.get("state") != "finished":
        folder.mkdir(parents=True, exist_ok=True)
        save_frozen(folder, run)
        if origin is not None:
            before = read_json(folder / ORIGIN, shape.OF_ORIGIN)[0]
            replace(folder / ORIGIN, to_json({**origin, **{key: before[key] for key in FIRST if key in before}}))
        begun = {"step": 0, "steps": run["train"]["steps"]} | status
        write_status(folder, **begun | {"state": "queued", "error": None})


@dataclass(frozen=True)
class Frozen:
    """An arm that waits in its folder, and what stood there before.

    Args:
        folder: of the run.
        before: its status before it waited; None where there was no folder.
    """

    folder: Path
    before: Mapping[str, Any] | None

    @staticmethod
    def of(run: dict[str, Any], origin: Mapping[str, Any]) -> Frozen:
        """Freezes a run, see ``freeze_arm``."""
        folder = run_folder(run)
        before = read_status(folder) if folder.exists() else None
        freeze_arm(run, origin)
        return Frozen(folder, before)

    def withdraw(self) -> None:
        """Leaves the folder as it was, as long as the arm still waits and nobody has taken it on."""
        if read_status(self.folder).get("state") != "queued" or in_use(self.folder):
            return
        if self.before is not None:
            write_status(self.folder, **self.before)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()


def settle_arm(folder: Path, error: BaseException | None = None) -> str | None:
    """None when the arm in ``folder`` is finished, or dropped by ``study.stop``; else why not, which ``status.json``
    says too afterwards.

    Args:
        folder: of an arm whose job has ended.
        error: what to note for an arm that ended without noting a reason itself, for instance killed.
    """
    status = read_status(folder)
    if status.get("state") in ("finished", "dropped"):
        return None
    if in_use(folder):
        return "in use by another process"
    if status.get("state") not in ("failed", "preempted") or not status.get("error"):
        status |= ending(error or ArmFailed("the job ended before the run finished"))
        write_status(folder, **status)
    return first_line(status)
