"""The arms of a sweep: checked together, frozen together, then run one after another on this machine.

Each arm is a process of its own, so one that dies (also by signal, or for lack of memory) leaves the others alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from beni.errors import BeniError, Preempted
from beni.runs.backlog import room_for
from beni.runs.folder import require_own
from beni.runs.frozen import save_frozen
from beni.runs.identity import run_folder
from beni.runs.lock import in_use, set_aside
from beni.runs.status import ending, first_line, read_status, write_status
from beni.training.preempt import SIGNALS


class ImpossibleArm(BeniError):
    """An arm that could never run; no arm of its sweep is started."""


class ArmFailed(BeniError):
    """At least one arm of a sweep did not finish."""


def check_arms(runs: Sequence[dict[str, Any]]) -> None:
    """Spec-propagates every arm in one further process, before any of them starts.

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
    problems = json.loads(done.stdout.splitlines()[-1])
    reasons = [f"{run_folder(run).name}: {p}" for run, p in zip(runs, problems, strict=True) if p is not None]
    if reasons:
        shown = "\n".join(reasons[:5]) + (f"\nand {len(reasons) - 5} more" if len(reasons) > 5 else "")
        raise ImpossibleArm(f"no arm was started, since {len(reasons)} of {len(runs)} are invalid\n{shown}")


def freeze_arm(run: dict[str, Any], command: str | None = None) -> Path:
    """Writes the frozen config and a queued status into the arm's run folder, unless it is finished, or a process works
    in it. With ``checkpoint.resume=never`` what stands there is set aside first.

    Args:
        command: that repeats the arm by itself; its process cannot know it.

    Raises:
        ResumeError: when another run stands there, or a damaged one.
        ResourceError: when the disk does not take it.
    """
    folder = run_folder(run)
    with room_for(folder):
        _freeze(folder, run, command)
    return folder


def _freeze(folder: Path, run: dict[str, Any], command: str | None) -> None:
    if in_use(folder):
        return
    if run["checkpoint"]["resume"] == "never":
        set_aside(folder)
    require_own(folder, run)
    status = read_status(folder)
    if status.get("state") != "finished":
        folder.mkdir(parents=True, exist_ok=True)
        save_frozen(folder, run)
        begun = {"step": 0, "steps": run["train"]["steps"]} | status
        told = {} if command is None else {"command": command}
        write_status(folder, **begun | told | {"state": "queued", "error": None})


def withdraw_arms(folders: Iterable[Path]) -> None:
    """Removes folders of arms that nobody has taken on, as long as they still wait, and their study if it is empty."""
    for folder in folders:
        if read_status(folder).get("state") == "queued" and not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()


def submitted(folders: Iterable[Path]) -> set[Path]:
    """What submitit has left of jobs that a scheduler took, in the studies of these folders."""
    return {
        path for study in {folder.parent for folder in folders} for path in study.glob(".submitit/*/*_submitted.pkl")
    }


def run_arms(folders: Sequence[Path], say: Callable[[str], None]) -> list[str | None]:
    """Runs frozen arms one after another.

    Returns:
        None for each arm that finished, or the reason why it did not; the reason is in its status.json as well.

    Raises:
        Preempted: when a signal has ended the sweep, and with it the arm that was running; the others wait.
    """
    reasons: list[str | None] = []
    for number, folder in enumerate(folders, start=1):
        say(f"arm {number}/{len(folders)}: {folder.name}")
        code, signals = _run_job(folder)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        reason = settle_arm(folder, ArmFailed(f"the process ended before the run finished ({how})"))
        if reason is not None:
            say(f"arm {number}/{len(folders)} {read_status(folder)['state']}: {reason}")
        if signals:
            raise Preempted(f"{signals[0].name} in arm {number} of {len(folders)}; the same command resumes")
        reasons.append(reason)
    return reasons


def _run_job(folder: Path) -> tuple[int, list[signal.Signals]]:
    """The exit code of the arm's process, and the signals that came meanwhile: they are passed on, and waited out."""
    received: list[signal.Signals] = []
    job = subprocess.Popen([sys.executable, "-m", "beni.launch.job", str(folder)], stdin=subprocess.DEVNULL)

    def pass_on(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        job.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        return job.wait(), received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def settle_arm(folder: Path, error: BaseException | None = None) -> str | None:
    """None when the arm in ``folder`` is finished; else why not, which ``status.json`` says too afterwards.

    Args:
        folder: of an arm whose job has ended.
        error: what to note for an arm that ended without noting a reason itself, for instance killed.
    """
    status = read_status(folder)
    if status.get("state") == "finished":
        return None
    if in_use(folder):
        return "in use by another process"
    if status.get("state") not in ("failed", "preempted") or not status.get("error"):
        status |= ending(error or ArmFailed("the job ended before the run finished"))
        write_status(folder, **status)
    return first_line(status)
