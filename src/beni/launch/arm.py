"""A run as a job of SLURM. submitit is given ``Arm(folder)`` and pickles that path alone; the rest is read in the job,
from the frozen config and the snapshot of the code.

What SLURM is told is the truth: the job ends with the run's exit code. After a signal (75) the first process asks for
the job to be queued again, while SLURM says that it runs; where it was cancelled, or SLURM queues it again itself, it
does not run any more. A run that has not come forward in two starts is not queued again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from beni.errors import PREEMPTED, Preempted
from beni.launch import jobs
from beni.launch.early import too_early
from beni.runs.files import CHECKPOINTS, COMPLETE, checkpoints_in
from beni.runs.lock import in_use
from beni.runs.status import read_status
from beni.training.preempt import SIGNALS

PATIENCE_S = 300
"""Seconds to wait for a process of an earlier start that still works in the folder."""
WATCH_S = 5.0
"""Seconds between two looks at whether a later start has taken over."""
STARTS_WITHOUT_STEPS = 2
PAUSES_S = (0, 2, 5, 10)
"""Seconds before each time that SLURM is asked to queue a job again: its controller may be busy, or start anew."""
REQUEUED = "requeued"
RUNS = ("RUNNING", "SIGNALING")
"""What SLURM says of a job that has not ended; the second one while a signal of its own is on its way."""


class Arm:
    """What submitit calls in every process of the job.

    Args:
        folder: of the frozen run, absolute.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> None:
        """Runs the run, and ends the process with its exit code, which leaves submitit nothing to pickle."""
        try:
            for number in SIGNALS:
                signal.signal(number, too_early)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one that came while python started is heard now
            code = _run(Path(self.folder))
        except Preempted as error:
            print(error, file=sys.stderr)
            code = PREEMPTED
        main = _rank() == 0
        if main:
            code = _after(Path(self.folder), code)
        sys.exit(0 if code == PREEMPTED and not main else code)  # so that srun does not kill the first process first

    def checkpoint(self) -> None:
        """Makes submitit take it for something that may be queued again; beni does that itself."""


def _run(folder: Path) -> int:
    if _rank() == 0:
        _note(folder, "started", job=job_id(), node=node(), attempt=attempt(), step=saved_step(folder))
        _wait_for_earlier(folder)
    from beni.launch.job import main  # imports torch

    over = threading.Event()
    if _rank() == 0:
        threading.Thread(target=_end_when_superseded, args=(folder, attempt(), over), daemon=True).start()
    try:
        return main([str(folder)])
    finally:
        over.set()


def _wait_for_earlier(folder: Path) -> None:
    """A process may outlive the machine's slurmd; it ends when it sees this start, after the step that it is in."""
    end = time.monotonic() + PATIENCE_S
    while in_use(folder) and time.monotonic() < end:
        time.sleep(1)


def _end_when_superseded(folder: Path, own: int, over: threading.Event) -> None:
    """Asks this process to save and end once a later start of the run has begun elsewhere, until it is ``over``."""
    while not over.wait(WATCH_S):
        if superseded(folder, own):
            os.kill(os.getpid(), signal.SIGTERM)
            return


def superseded(folder: Path, own: int) -> bool:
    """Whether a start after attempt ``own`` of this job, or another job, has been noted."""
    starts = [(line["job"], line["attempt"]) for line in jobs.history(folder) if line["event"] == "started"]
    return (job_id(), own) in starts and starts[-1] != (job_id(), own)  # a full disk may have taken no note of this one


def _after(folder: Path, code: int) -> int:
    """Has the job queued again where it should be, and notes how it ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # SLURM ends a job that is queued again
    further = None
    if code == PREEMPTED and (further := _why_not_again(folder) or _queue_again()) != REQUEUED:
        print(f"not queued again: {further}; python -m beni.launch retry {folder} goes on", file=sys.stderr)
    _note(folder, "ended", job=job_id(), attempt=attempt(), code=code, step=saved_step(folder), next=further)
    return code


def _note(folder: Path, event: jobs.Event, **values: Any) -> None:
    """What a full disk does not take is missing in a table; the run and its next start count more."""
    try:
        jobs.note(folder, event, **values)
    except OSError as error:
        print(f"{folder}: that the job has {event} is not noted: {error}", file=sys.stderr)


def _why_not_again(folder: Path) -> str | None:
    """Why the run should not go on as it is; None where it should."""
    if superseded(folder, attempt()):
        return "another start of the run has taken over"
    starts = [line for line in jobs.history(folder) if line["event"] == "started" and line["job"] == job_id()]
    recent = [line["step"] for line in starts[-STARTS_WITHOUT_STEPS:]]
    if len(recent) == STARTS_WITHOUT_STEPS and saved_step(folder) <= recent[0]:
        return (
            f"{STARTS_WITHOUT_STEPS} starts have saved no step; raise launcher.timeout_min or launcher.signal_delay_s"
        )
    return None


def _queue_again() -> str:
    """Asks SLURM, while it says that the job runs, to queue it again: ``REQUEUED``, or why it is not."""
    why = ""
    for pause in PAUSES_S:
        time.sleep(pause)
        state = job_state()
        if state is None:
            why = "the scheduler says nothing"
        elif state not in RUNS:
            return f"the scheduler says {state}"
        elif (refused := _refusal()) is None:
            return REQUEUED
        else:
            why = f"scontrol requeue: {refused}"
    return why


def _refusal() -> str | None:
    """Asks for this job once: SLURM's words where it refuses, or does not answer."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = " ".join((done.stderr or done.stdout).split())
    return None if done.returncode == 0 else said or f"exit code {done.returncode}"


def job_state() -> str | None:
    """What SLURM says of this job: one of ``RUNS`` in the grace time before an eviction, ``COMPLETING`` afterwards."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job_id()], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    return fields.get("JobState")


def saved_step(folder: Path) -> int:
    """The step that a start of the run goes on from."""
    saved = [step for step, path in checkpoints_in(folder / CHECKPOINTS).items() if (path / COMPLETE).is_file()]
    return max(saved, default=0) if read_status(folder).get("state") != "finished" else read_status(folder)["step"]


def job_id() -> str:
    """This job, as the scheduler's commands show it: an element of an array is ``<array>_<index>``. Its own number
    would not do, since the last element has that of the whole array.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]


def node() -> str:
    """This machine, as SLURM calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def attempt() -> int:
    """How often SLURM has queued this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))
