"""How the runs of a study are doing: what their folders say and what the scheduler says, and neither believed alone.

A status of ``running`` is that of a run whose process was killed as well; a job that SLURM calls completed may be one
that was preempted. Where the two disagree, the folder is right about what was reached, and the scheduler about who is
still at work. Computed on reading; nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from beni.launch import jobs
from beni.launch.scheduler import scheduler_states
from beni.runs.frozen import is_frozen
from beni.runs.lock import in_use, is_set_aside
from beni.runs.status import first_line, read_status_or_why

LIVE = frozenset({"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING", "SIGNALING",
                  "STAGE_OUT", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "STOPPED"})  # fmt: skip
"""States of a job that SLURM has not done with."""

BEGUN = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")

STUCK = "launch failed requeued held"
"""Reason of a job that a node did not take, and that SLURM holds until an administrator releases it."""

UNKNOWN = "SLURM does not answer; this is what the run has written"


@dataclass(frozen=True)
class State:
    """How a run is doing.

    Args:
        folder: of the run.
        state: ``waiting``, ``running``, ``finished``, ``dropped`` (by ``study.stop``), ``failed``, ``preempted``
            (nobody goes on with it), ``lost`` (it was killed without a word).
        status: what ``status.json`` says.
        job: of the scheduler, or of a process; empty where there is none.
        node: where it runs, or ran.
        reason: why it waits, failed or was lost, on one line.
        events: of ``jobs.jsonl``.
    """

    folder: Path
    state: str
    status: Mapping[str, Any]
    job: str = ""
    node: str = ""
    reason: str = ""
    events: Sequence[Mapping[str, Any]] = ()

    @property
    def over(self) -> bool:
        """Whether nobody works on the run, nor is going to."""
        return self.state not in ("waiting", "running")

    @property
    def step(self) -> int:
        return int(self.status.get("step") or 0)

    @property
    def steps(self) -> int:
        return int(self.status.get("steps") or 0)

    def seconds_left(self, now: float | None = None) -> float | None:
        """Seconds to the last step at the rate of this start; None where it does not run, or has no rate yet."""
        start = jobs.last([dict(event) for event in self.events], "started")
        if self.state != "running" or start is None or not self.status.get("updated"):
            return None
        taken = self.step - int(start.get("step") or 0)
        since = _seconds(str(self.status["updated"])) - _seconds(str(start["time"]))
        late = (time.time() if now is None else now) - _seconds(str(self.status["updated"]))
        return max(0.0, (self.steps - self.step) * since / taken - late) if taken > 0 and since > 0 else None


def runs_of(study: Path) -> list[Path]:
    """Folders of the runs in a study, or the study itself where it is a run."""
    if is_frozen(study):
        return [study]
    return sorted(path.parent for path in study.glob("*/config.yaml") if not is_set_aside(path.parent))


def states_of(folders: Sequence[Path]) -> list[State]:
    """The state of each run; SLURM is asked once for all of them."""
    told = [(folder, jobs.history(folder)) for folder in folders]
    submitted = [jobs.last(events, "submitted") for _, events in told]
    on_slurm = {line["job"] for line in submitted if line is not None and line.get("backend") == "slurm"}
    scheduler = scheduler_states(on_slurm)
    return [_state(folder, events, line, scheduler) for (folder, events), line in zip(told, submitted, strict=True)]


def _state(
    folder: Path,
    events: Sequence[dict[str, Any]],
    submitted: Mapping[str, Any] | None,
    scheduler: Mapping[str, Mapping[str, str]] | None,
) -> State:
    status, problem = read_status_or_why(folder)
    said = str(status.get("state") or "unknown")
    start = jobs.last(events, "started")
    known = {"folder": folder, "status": status, "events": events}
    if submitted is not None:
        known |= {"job": str(submitted.get("job", "")), "node": str(submitted.get("node", ""))}
    if start is not None:
        known["node"] = str(start.get("node", ""))
    reason = first_line(status) if status.get("error") else problem or ""
    if said == "finished":
        return State(state="finished", **known)
    if said == "dropped":
        return State(state="dropped", reason=reason, **known)
    if submitted is None or submitted.get("backend") != "slurm":
        return _here(said, reason, known)
    if scheduler is None:
        state = {"queued": "waiting"}.get(said, said)
        return State(state=state, reason=UNKNOWN, **known)
    job = scheduler.get(known["job"], {})
    return _there(said, reason, job, known)


def _here(said: str, reason: str, known: dict[str, Any]) -> State:
    """A run of this machine, or of one that shares its disk: a process that works in a folder holds its lock."""
    if in_use(known["folder"]):
        return State(state="running", **known)
    if said == "running":
        return State(state="lost", reason="the process was killed, or its machine stopped", **known)
    state = {"queued": "waiting", "unknown": "failed"}.get(said, said)
    return State(state=state, reason=reason, **known)


def _there(said: str, reason: str, job: Mapping[str, str], known: dict[str, Any]) -> State:
    """A run that SLURM was given."""
    word, detail = job.get("state", ""), job.get("reason", "")
    known["node"] = job.get("node") or known.get("node", "")
    if word in BEGUN:
        return State(state="running", **known)
    if detail == STUCK:
        return State(state="lost", reason=f"SLURM holds its job: {detail}", **known)
    if word in LIVE:
        return State(state="waiting", reason="" if detail in ("None", "") else detail, **known)
    if said in ("failed", "preempted") and reason:
        return State(state=said, reason=reason, **known)
    how = f"SLURM: {word or 'the job is gone'}" + (f", exit code {job['exit']}" if job.get("exit") else "")
    return State(state="lost", reason=how, **known)


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()
