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
        for number in SIGNALS:
            signal.signal(number, too_early)
        try:
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
        jobs.note(folder, "started", job=job_id(), node=node(), attempt=attempt(), step=saved_step(folder))
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
    start = jobs.last(jobs.history(folder), "started")
    return start is not None and (start["job"], start["attempt"]) != (job_id(), own)


def _after(folder: Path, code: int) -> int:
    """Notes how the job ended, and has it queued again where it should be."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # SLURM ends a job that is queued again
    step, further = saved_step(folder), None
    if code == PREEMPTED:
        further = _why_not_again(folder) or "requeued"
    jobs.note(folder, "ended", job=job_id(), attempt=attempt(), code=code, step=step, next=further)
    if further == "requeued":
        subprocess.run(["scontrol", "requeue", job_id()], timeout=60, check=False)
    return code


def _why_not_again(folder: Path) -> str | None:
    """None where the job is to be queued again."""
    if superseded(folder, attempt()):
        return "another start of the run has taken over"
    starts = [line for line in jobs.history(folder) if line["event"] == "started" and line["job"] == job_id()]
    recent = [line["step"] for line in starts[-STARTS_WITHOUT_STEPS:]]
    if len(recent) == STARTS_WITHOUT_STEPS and saved_step(folder) <= recent[0]:
        return (
            f"{STARTS_WITHOUT_STEPS} starts have saved no step; raise launcher.timeout_min or launcher.signal_delay_s"
        )
    state = job_state()
    return None if state in RUNS else f"the scheduler says {state or 'nothing'}"


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
