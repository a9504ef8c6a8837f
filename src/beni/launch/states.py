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

from beni.errors import PREEMPTED
from beni.launch import jobs, processes
from beni.launch.scheduler import scheduler_states
from beni.runs.lock import in_use
from beni.runs.status import first_line, read_status_or_why

LIVE = frozenset({"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING", "SIGNALING",
                  "STAGE_OUT", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "STOPPED"})  # fmt: skip
"""States of a job that SLURM has not done with."""

BEGUN = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")

ENDED_OTHERWISE = ("FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "REVOKED")
"""States of a job that has ended in another way than a preemption does: not by who evicts, cancels or stops it."""

BAD = ("failed", "lost", "preempted")
"""States of a run that has ended without finishing, and that nobody goes on with."""

STUCK = "launch failed requeued held"
"""Reason of a job that a node did not take, and that SLURM holds until an administrator releases it."""

NOT_GIVEN = "nobody has been given it yet"

HANDING_OVER_S = 120.0
"""Seconds after a run was frozen within which it may still be on its way to who will run it: a big sweep takes one
minute.
"""

GONE = "the sweep that was to start it has gone"

UNKNOWN = "SLURM does not answer; this is what the run has written"


@dataclass(frozen=True)
class State:
    """How a run is doing.

    Args:
        folder: of the run.
        state: ``waiting``, ``running``, ``finished``, ``dropped`` (by ``study.stop``), ``failed``, ``preempted``
            (nobody goes on with it), ``lost`` (it was killed without a word), ``unknown`` (nobody says).
        status: what ``status.json`` says.
        job: of the scheduler, or of a process; empty where there is none.
        node: where it runs, or ran.
        reason: why it waits, failed or was lost, on one line.
        events: of ``jobs.jsonl``.
        stranded: whether it waits and nobody is known who will start it, as ``retry`` does.
    """

    folder: Path
    state: str
    status: Mapping[str, Any]
    job: str = ""
    node: str = ""
    reason: str = ""
    events: Sequence[dict[str, Any]] = ()
    stranded: bool = False

    @property
    def over(self) -> bool:
        """Whether nobody works on the run, nor is going to."""
        return self.stranded or self.state not in ("waiting", "running", "unknown")

    @property
    def given_up(self) -> bool:
        """Whether it waits in vain: nobody is going to start it, and nobody is on the way to do so."""
        updated = str(self.status.get("updated") or "")
        fresh = self.reason == NOT_GIVEN and updated and time.time() - _seconds(updated) < HANDING_OVER_S
        return self.stranded and not fresh

    @property
    def turn(self) -> jobs.Turn:
        """Who was given the run last, and what came of it."""
        return jobs.Turn.of(self.events)

    @property
    def backend(self) -> str:
        """The backend of who was given the run last."""
        return str((self.turn.submitted or {}).get("backend", "local"))

    @property
    def step(self) -> int:
        return int(self.status.get("step") or 0)

    @property
    def steps(self) -> int:
        return int(self.status.get("steps") or 0)

    def seconds_left(self, now: float | None = None) -> float | None:
        """Seconds to the last step at the rate of this start; None where it does not run, or has no rate yet."""
        first = {"time": self.status["started"]} if self.status.get("started") and not self.events else None
        start = jobs.last(self.events, "started") or first
        if self.state != "running" or start is None or not self.status.get("updated"):
            return None
        taken = self.step - int(start.get("step") or 0)
        since = _seconds(str(self.status["updated"])) - _seconds(str(start["time"]))
        late = (time.time() if now is None else now) - _seconds(str(self.status["updated"]))
        return max(0.0, (self.steps - self.step) * since / taken - late) if taken > 0 and since > 0 else None


def states_of(folders: Sequence[Path]) -> list[State]:
    """The state of each run; SLURM is asked once for all of them."""
    told = [(folder, jobs.history(folder)) for folder in folders]
    submitted = [jobs.last(events, "submitted") for _, events in told]
    on_slurm = {line["job"] for line in submitted if line is not None and line.get("backend") == "slurm"}
    scheduler = scheduler_states(on_slurm)
    return [_state(folder, events, scheduler) for folder, events in told]


def _state(folder: Path, events: Sequence[dict[str, Any]], scheduler: Mapping[str, Mapping[str, str]] | None) -> State:
    status, problem = read_status_or_why(folder)
    said = str(status.get("state") or "unknown")
    turn = jobs.Turn.of(events)
    known: dict[str, Any] = {"folder": folder, "status": status, "events": events}
    for line in (turn.submitted, turn.started):
        if line is not None:
            known |= {"job": str(line.get("job", "")), "node": str(line.get("node", ""))}
    given = turn.submitted or {}
    job = (scheduler or {}).get(given["job"], {}) if given.get("backend") == "slurm" else {}
    known["node"] = job.get("node") or known.get("node", "")
    reason = first_line(status) if status.get("error") else problem or ""
    if said == "finished":
        return State(state="finished", **known)
    if said == "dropped":
        return State(state="dropped", reason=reason, **known)
    if given.get("backend") != "slurm":
        return _here(said, reason, turn, known)
    if scheduler is None:
        if said == "preempted":  # it may have been queued again
            return State(state="unknown", reason=f"{UNKNOWN}: {said}, {reason}", **known)
        state = {"queued": "waiting"}.get(said, said)
        return State(state=state, reason=UNKNOWN, **known)
    return _there(said, reason, job, turn, known)


def _here(said: str, reason: str, turn: jobs.Turn, known: dict[str, Any]) -> State:
    """A run of this machine, or of one that shares its disk: a process that works in a folder holds its lock, and one
    that is on its way there has been noted.
    """
    loads = turn.started is not None and turn.ended is None and processes.is_alive(turn.started)
    try:
        works = loads or in_use(known["folder"])
    except PermissionError:
        return State(state="unknown", reason=f"its lock is another user's; it has written: {said}", **known)
    if works:
        return State(state="running", **known)
    if said == "running":
        return State(state="lost", reason="the process was killed, or its machine stopped", **known)
    if said == "queued":
        stranded, why = _stranded(turn, known)
        return State(state="waiting", reason=why, stranded=stranded, **known)
    return State(state={"unknown": "failed"}.get(said, said), reason=reason, **known)


def _stranded(turn: jobs.Turn, known: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether nobody is known who will start a run that waits for a process; and why, where there is more to say."""
    updated, events = str(known["status"].get("updated") or ""), known["events"]
    if updated and (not events or _seconds(updated) > _seconds(events[-1]["time"])):
        return True, NOT_GIVEN
    given = turn.submitted or {}
    if turn.ended is not None and turn.started is None:
        return True, str(turn.ended.get("next") or GONE)
    if turn.started is not None or (alive := processes.is_alive(given)) is False:
        return True, GONE
    return False, "" if alive else f"only {given.get('node') or 'its machine'} knows whether its sweep still works"


def _there(said: str, reason: str, job: Mapping[str, str], turn: jobs.Turn, known: dict[str, Any]) -> State:
    """A run that SLURM was given."""
    word, detail = job.get("state", ""), job.get("reason", "")
    if word in BEGUN:
        return State(state="running", **known)
    if detail == STUCK:
        return State(state="lost", reason=f"SLURM holds its job: {detail}", **known)
    if word in LIVE:
        return State(state="waiting", reason="" if detail in ("None", "") else detail, **known)
    how = f"SLURM: {word or 'the job is gone'}" + (f", exit code {job['exit']}" if job.get("exit") else "")
    if said == "preempted" and reason and not _is_of_the_last_start(word, job.get("exit", ""), turn):
        state = "failed" if word == "FAILED" else "lost"
        return State(state=state, reason=f"{how}, after it was queued again; before: {reason}", **known)
    if said in ("failed", "preempted") and reason:
        return State(state=said, reason=reason, **known)
    return State(state="lost", reason=how, **known)


def _is_of_the_last_start(word: str, code: str, turn: jobs.Turn) -> bool:
    """Whether a run that says that it was preempted was so in the last start of its job; one that could not begin after
    it was queued again has not said so.
    """
    if word not in ENDED_OTHERWISE or code.split(":")[0] == str(PREEMPTED):
        return True
    return turn.ended is not None and turn.ended.get("next") != "requeued"


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()
