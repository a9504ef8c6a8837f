"""What a run is said to be doing, by its folder and by the scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from beni.launch import jobs, states
from beni.launch.__main__ import main
from beni.launch.states import states_of
from beni.runs.lock import lock_of
from beni.runs.status import write_status

ERROR = {"type": "DataError", "message": "row 3 has no image", "traceback": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "study" / "run"
    made.mkdir(parents=True)
    return made


def state(folder: Path) -> tuple[str, str]:
    """Its state and reason."""
    [one] = states_of([folder])
    return one.state, one.reason


@pytest.mark.parametrize(
    ("status", "locked", "expected"),
    [
        ({"state": "queued"}, False, ("waiting", "nobody has been given it yet")),
        ({"state": "running"}, True, ("running", "")),
        ({"state": "queued"}, True, ("running", "")),
        ({"state": "running"}, False, ("lost", "the process was killed, or its machine stopped")),
        ({"state": "failed", "error": ERROR}, False, ("failed", "row 3 has no image")),
        ({"state": "preempted", "error": ERROR}, False, ("preempted", "row 3 has no image")),
        ({"state": "finished"}, False, ("finished", "")),
    ],
)
def test_of_a_run_of_this_machine_the_lock_tells_who_works(
    folder: Path, status: dict[str, Any], locked: bool, expected: tuple[str, str]
) -> None:
    write_status(folder, step=1, **status)
    if locked:
        with lock_of(folder):
            assert state(folder) == expected
    else:
        assert state(folder) == expected


SLURM = {
    "pending": ({"state": "PENDING", "reason": "Resources"}, {"state": "queued"}, ("waiting", "Resources")),
    "held": (
        {"state": "PENDING", "reason": "launch failed requeued held"},
        {"state": "running"},
        ("lost", "SLURM holds its job: launch failed requeued held"),
    ),
    "begun": ({"state": "RUNNING"}, {"state": "queued"}, ("running", "")),
    "queued again": ({"state": "PENDING", "reason": "BeginTime"}, {"state": "preempted"}, ("waiting", "BeginTime")),
    "killed": (
        {"state": "OUT_OF_MEMORY", "exit": "0:125"},
        {"state": "running"},
        ("lost", "SLURM: OUT_OF_MEMORY, exit code 0:125"),
    ),
    "node": ({"state": "NODE_FAIL", "exit": "1:0"}, {"state": "running"}, ("lost", "SLURM: NODE_FAIL, exit code 1:0")),
    "cancelled": (
        {"state": "CANCELLED", "exit": "0:0"},
        {"state": "queued"},
        ("lost", "SLURM: CANCELLED, exit code 0:0"),
    ),
    "failed": (
        {"state": "FAILED", "exit": "2:0"},
        {"state": "failed", "error": ERROR},
        ("failed", "row 3 has no image"),
    ),
    "finished": ({"state": "RUNNING"}, {"state": "finished"}, ("finished", "")),
    "gone": ({}, {"state": "running"}, ("lost", "SLURM: the job is gone")),
}


@pytest.mark.parametrize("case", SLURM)
def test_of_a_job_of_slurm_both_are_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    job, status, expected = SLURM[case]
    write_status(folder, step=1, **status)
    jobs.note(folder, "submitted", backend="slurm", job="7_2", logs="", code="abc")
    asked: list[Any] = []

    def answer(ids: Any) -> Any:
        asked.append(set(ids))
        return {"7_2": job} if job else {}

    monkeypatch.setattr(states, "scheduler_states", answer)
    assert state(folder) == expected
    assert asked == [{"7_2"}]


def test_all_machines_of_a_job_are_shown_also_when_it_is_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(folder, step=2, state="finished")
    jobs.note(folder, "submitted", backend="slurm", job="7", logs="", code="abc")
    jobs.note(folder, "started", job="7", node="n1", attempt=0, step=0)
    for told, node in (({"7": {"state": "COMPLETED", "node": "n[1-2]"}}, "n[1-2]"), ({}, "n1"), (None, "n1")):
        monkeypatch.setattr(states, "scheduler_states", lambda ids, told=told: told)
        assert states.states_of([folder])[0].node == node


SAVED = {"type": "Preempted", "message": "SIGTERM after step 701: its checkpoint is saved", "traceback": ""}
STALE = "after it was queued again; before: SIGTERM after step 701: its checkpoint is saved"
FRESH = ("preempted", "SIGTERM after step 701: its checkpoint is saved")


@pytest.mark.parametrize(
    ("job", "then", "expected"),
    [
        ({"state": "FAILED", "exit": "2:0"}, "requeued", ("failed", f"SLURM: FAILED, exit code 2:0, {STALE}")),
        ({"state": "OUT_OF_MEMORY", "exit": "0:9"}, None, ("lost", f"SLURM: OUT_OF_MEMORY, exit code 0:9, {STALE}")),
        ({"state": "NODE_FAIL", "exit": ""}, "requeued", ("lost", f"SLURM: NODE_FAIL, {STALE}")),
        ({"state": "FAILED", "exit": "75:0"}, "requeued", FRESH),
        ({"state": "FAILED", "exit": "0:15"}, "2 starts have saved no step", FRESH),
        ({"state": "PREEMPTED", "exit": "0:0"}, "requeued", FRESH),
        ({"state": "CANCELLED", "exit": "0:0"}, "requeued", FRESH),
        ({"state": "TIMEOUT", "exit": "0:0"}, "requeued", FRESH),
        ({}, "requeued", FRESH),
    ],
)
def test_what_a_run_said_before_it_was_queued_again_is_no_news_of_a_start_that_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, str], then: str | None, expected: tuple[str, str]
) -> None:
    write_status(folder, step=701, state="preempted", error=SAVED)
    jobs.note(folder, "submitted", backend="slurm", job="7", logs="", code="abc")
    jobs.note(folder, "started", job="7", node="n1", attempt=0, step=0)
    if then is not None:
        jobs.note(folder, "ended", job="7", attempt=0, code=75, step=701, next=then)
    else:
        jobs.note(folder, "ended", job="7", attempt=0, code=75, step=701, next="requeued")
        jobs.note(folder, "started", job="7", node="n1", attempt=1, step=701)
    monkeypatch.setattr(states, "scheduler_states", lambda ids: {"7": job} if job else {})
    assert state(folder) == expected


def test_where_slurm_does_not_answer_the_folder_is_told_with_a_doubt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(folder, state="running", step=1)
    jobs.note(folder, "submitted", backend="slurm", job="7", logs="", code="abc")
    monkeypatch.setattr(states, "scheduler_states", lambda ids: None)
    assert state(folder) == ("running", states.UNKNOWN)


def test_where_slurm_does_not_answer_a_preempted_run_may_have_been_queued_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(folder, state="preempted", step=1, error=SAVED)
    jobs.note(folder, "submitted", backend="slurm", job="7", logs="", code="abc")
    monkeypatch.setattr(states, "scheduler_states", lambda ids: None)
    [one] = states_of([folder])
    assert (one.state, one.over) == ("unknown", False)
    assert one.reason == f"{states.UNKNOWN}: preempted, {SAVED['message']}"


AS_NOBODY = """
import os, pathlib, sys
from beni.launch import slurm, states
folder = pathlib.Path(sys.argv[1])
states.states_of([folder])
os.setgid(65534)
os.setuid(65534)
[one] = states.states_of([folder])
print(one.state, one.reason)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_sees_whether_a_run_is_at_work() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are its user's alone
        folder = Path(place) / "study" / "run"
        folder.mkdir(parents=True)
        write_status(folder, state="running", step=1)
        Path(place).chmod(0o755)

        def told() -> str:
            command = [sys.executable, "-c", AS_NOBODY, str(folder)]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

        lock = lock_of(folder)
        with lock:
            assert told() == "running"
        Path(lock.lock_file).touch(0o644)
        assert told() == "lost the process was killed, or its machine stopped"
        Path(lock.lock_file).chmod(0o600)
        assert told() == "unknown its lock is another user's; it has written: running"


def test_the_time_that_is_left_is_that_at_the_rate_of_the_newest_start(folder: Path) -> None:
    write_status(folder, state="running", step=30, steps=50)
    text = (folder / "status.json").read_text()
    updated = "2026-01-01T00:10:00+00:00"
    (folder / "status.json").write_text(text.replace(text.split('"updated": "')[1][:25], updated))
    line = '{"event": "started", "time": "2026-01-01T00:00:00+00:00", "job": "7", "attempt": 1, "step": 10}\n'
    (folder / "jobs.jsonl").write_text(line)
    with lock_of(folder):
        [one] = states_of([folder])
    now = states._seconds(updated) + 60
    assert one.seconds_left(now) == 20 * 30 - 60
    assert one.seconds_left(now + 3600) == 0


def test_of_a_first_start_of_this_machine_the_status_has_the_time(folder: Path) -> None:
    write_status(folder, state="running", step=30, steps=50, started="2026-01-01T00:00:00+00:00")
    with lock_of(folder):
        [one] = states_of([folder])
    updated = states._seconds(one.status["updated"])
    rate = (updated - states._seconds("2026-01-01T00:00:00+00:00")) / 30
    assert one.seconds_left(updated) == pytest.approx(20 * rate)


def test_a_reason_with_brackets_is_shown_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"type": "RuntimeError", "message": "[/src/tcp/pair.cc:537] [bold]Read error", "traceback": ""}
    write_status(folder, state="failed", step=1, error=error)
    (folder / "config.yaml").write_text("{}")
    main(["status", str(folder.parent)])
    assert "[/src/tcp/pair.cc:537] [bold]Read error" in capsys.readouterr().out
