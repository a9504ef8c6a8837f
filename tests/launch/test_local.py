"""Arms on this machine: who runs when, on which cores and GPUs, and what a signal does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beni.errors import Preempted
from beni.launch import jobs, local, processes
from beni.launch.__main__ import main
from beni.launch.local import Sweep, share_of_cores, share_of_gpus
from beni.launch.states import states_of
from beni.runs.lock import lock_of
from beni.runs.status import read_status, write_status

FINISHED = """
import json, pathlib, sys
pathlib.Path(sys.argv[1], "status.json").write_text(json.dumps({"state": "finished", "step": 2}))
print("printed")
"""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three arms that wait."""
    made = [tmp_path / "study" / name for name in "abc"]
    for folder in made:
        folder.mkdir(parents=True)
        write_status(folder, state="queued", step=0)
    return made


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name of an arm -> the Python text that its process runs; else it finishes."""
    texts: dict[str, str] = {}
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        if command[1:3] != ["-m", "beni.launch.job"]:
            return popen(command, **options)
        return popen([sys.executable, "-c", texts.get(Path(command[3]).name, FINISHED), command[3]], **options)

    monkeypatch.setattr(local.subprocess, "Popen", start)
    return texts


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_an_arm_that_is_killed_says_so_and_the_others_run(
    folders: list[Path], programs: dict[str, str], at_a_time: int
) -> None:
    programs["a"] = "import os; os.kill(os.getpid(), 9)"
    write_status(folders[0], state="running", step=1)
    said: list[str] = []
    reasons = Sweep(folders, Path("code"), at_a_time, said.append).run()
    assert reasons == ["the process ended before the run finished (killed by signal 9)", None, None]
    assert read_status(folders[0])["error"]["message"] == reasons[0]
    assert [read_status(folder)["state"] for folder in folders] == ["failed", "finished", "finished"]
    assert f"arm 1/3 failed: {reasons[0]}" in said
    assert [line for line in said if line[7] == ":"] == ["arm 1/3: a", "arm 2/3: b", "arm 3/3: c"]


def test_arms_at_a_time_print_to_files_of_the_study_and_share_its_cores(
    folders: list[Path], programs: dict[str, str]
) -> None:
    programs["a"] = FINISHED + "import os; print(sorted(os.sched_getaffinity(0)), os.environ['PYTHONPATH'])"
    Sweep(folders, Path("/some/code"), 2, lambda text: None).run()
    log = folders[0].parent / ".jobs" / "a_log.out"
    cores = sorted(os.sched_getaffinity(0))
    printed = log.read_text().splitlines()
    assert printed[0] == "printed"
    assert printed[1].startswith(str(cores[: max(1, len(cores) // 2)]))
    assert "/some/code" in printed[1]
    line = jobs.last(jobs.history(folders[0]), "submitted")
    assert line is not None
    assert (line["backend"], line["logs"], line["code"]) == ("local", str(log), "code")


def test_a_signal_is_passed_on_to_all_arms_that_run_and_ends_the_sweep(
    folders: list[Path], programs: dict[str, str]
) -> None:
    status = json.dumps({"state": "preempted", "error": {"type": "Preempted", "message": "SIGTERM after step 3"}})
    waits = f"""
import os, pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "status.json").write_text({status!r})
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
other = pathlib.Path(sys.argv[1]).parent / ("b" if sys.argv[1].endswith("a") else "a") / "ready"
while not other.exists():
    time.sleep(0.01)
if sys.argv[1].endswith("b"):
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    programs |= {"a": waits, "b": waits}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM in arm 2 of 3; the same command resumes"):
        Sweep(folders, Path("code"), 2, lambda text: None).run()
    assert [read_status(folder)["state"] for folder in folders] == ["preempted", "preempted", "queued"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_cores_are_divided_without_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    assert share_of_cores(0, 1) is None
    assert [share_of_cores(slot, 2) for slot in range(2)] == [{0, 1}, {2, 5, 7}]
    assert [share_of_cores(slot, 7) for slot in range(7)] == [{0}, {1}, {2}, {5}, {7}, {0}, {1}]


@pytest.mark.parametrize(
    ("visible", "at_a_time", "expected"),
    [
        ("0,1,2,3", 1, [{}]),
        ("0,1,2,3", 2, ["0,2", "1,3"]),
        ("4,GPU-7", 3, ["4", "GPU-7", "4"]),
        ("", 2, [{}, {}]),
    ],
)
def test_gpus_are_divided(monkeypatch: pytest.MonkeyPatch, visible: str, at_a_time: int, expected: list[Any]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shares = [share_of_gpus(slot, at_a_time) for slot in range(at_a_time)]
    assert shares == [{"CUDA_VISIBLE_DEVICES": one} if one else {} for one in expected]


def test_a_process_is_ended_that_was_noted_and_none_that_has_its_number_by_now() -> None:
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    noted = processes.named(own.pid)
    try:
        assert not processes.ask_to_end(noted | {"born": noted["born"] - 5}), "another process had the number then"
        assert not processes.ask_to_end({key: noted[key] for key in ("job", "node")}), "nothing tells which it was"
        assert not processes.ask_to_end(noted | {"node": "elsewhere"})
        assert processes.is_alive(noted | {"node": "elsewhere"}) is None
        assert own.poll() is None
        assert processes.ask_to_end(noted)
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken notice
        assert processes.is_alive(noted) is False
        assert own.wait(10) == -signal.SIGTERM
        assert not processes.ask_to_end(noted)
    finally:
        own.kill()
        own.wait()


def test_the_starts_and_ends_of_arms_are_noted(folders: list[Path], programs: dict[str, str]) -> None:
    programs["b"] = "import sys; sys.exit(3)"
    Sweep(folders, Path("code"), 1, lambda text: None).run()
    for folder, code, step in zip(folders, (0, 3, 0), (2, 0, 2), strict=True):
        turn = jobs.Turn.of(jobs.history(folder))
        assert turn.submitted is not None
        assert turn.started is not None
        assert turn.ended is not None
        assert turn.submitted["job"] == str(os.getpid())
        assert turn.started["job"] == turn.ended["job"] != turn.submitted["job"]
        assert (turn.started["step"], turn.ended["code"], turn.ended["step"]) == (0, code, step)


def test_a_run_of_this_process_is_noted_with_its_start_and_end(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = folders

    def preempted() -> None:
        with local.in_this_process(a):
            turn = jobs.Turn.of(jobs.history(a))
            assert turn.started is not None
            assert processes.is_alive(turn.started)
            assert found([a]) == [("running", "")]
            raise Preempted("SIGTERM")

    with pytest.raises(Preempted):
        preempted()
    turn = jobs.Turn.of(jobs.history(a))
    assert turn.ended is not None
    assert turn.ended["code"] == 75
    with lock_of(b), local.in_this_process(b):
        assert jobs.history(b) == [], "another process works there"
    monkeypatch.setenv("RANK", "1")
    with local.in_this_process(c):
        assert jobs.history(c) == []


SWEEP = """
import pathlib, subprocess, sys
from beni.errors import Preempted
from beni.launch import local
popen = subprocess.Popen
def start(command, **options):
    return popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)
local.subprocess.Popen = start
folders = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/config.yaml"))
try:
    print(local.Sweep(folders, pathlib.Path("code"), 1, print).run(), flush=True)
except Preempted as error:
    print(error, flush=True)
    sys.exit(75)
"""
"""A sweep whose arms never end by themselves, and do not come as far as to hold the lock of their folders."""


@pytest.fixture
def sweep(folders: list[Path]) -> Iterator[subprocess.Popen[str]]:
    """A sweep of three arms, one at a time, in a process of its own; the first one has begun."""
    for folder in folders:
        (folder / "config.yaml").write_text("{}")
    study = str(folders[0].parent)
    with subprocess.Popen([sys.executable, "-c", SWEEP, study], stdout=subprocess.PIPE, text=True) as process:
        wait_for_start(folders[0])
        yield process
        process.kill()


def wait_for_start(folder: Path) -> None:
    """Until the process of an arm is known."""
    end = time.monotonic() + 30
    while jobs.Turn.of(jobs.history(folder)).started is None:
        assert time.monotonic() < end, jobs.history(folder)
        time.sleep(0.02)


def found(folders: list[Path]) -> list[tuple[str, str]]:
    """State and reason of runs."""
    return [(state.state, state.reason) for state in states_of(folders)]


def test_a_sweep_is_cancelled_as_by_ctrl_c(
    folders: list[Path], sweep: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(folders) == [("running", ""), ("waiting", ""), ("waiting", "")]
    assert main(["cancel", str(folders[0].parent)]) == 0
    assert capsys.readouterr().out.startswith("3 jobs cancelled")
    assert sweep.wait(20) == 75
    assert sweep.stdout is not None
    assert sweep.stdout.read().splitlines()[-1] == "SIGTERM in arm 1 of 3; the same command resumes"
    idle = ("waiting", "SIGTERM ended its sweep")
    assert found(folders) == [
        ("preempted", "SIGTERM before the run began; the same command starts it"),
        *(idle, idle),
    ]
    assert [state.over for state in states_of(folders)] == [True, True, True]
    assert main(["cancel", str(folders[0].parent)]) == 0
    assert capsys.readouterr().out.startswith("0 jobs cancelled")


def test_single_arms_of_a_sweep_are_cancelled_and_it_goes_on_with_the_rest(
    folders: list[Path], sweep: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = folders
    study = str(a.parent)
    assert main(["cancel", study, "--run", "b"]) == 0
    assert found(folders) == [("running", ""), ("waiting", jobs.CANCELLED), ("waiting", "")]
    assert main(["cancel", study, "--run", "a"]) == 0
    wait_for_start(c)
    assert [state for state, _ in found(folders)] == ["preempted", "preempted", "running"]
    assert jobs.Turn.of(jobs.history(b)).started is None
    assert main(["cancel", study]) == 0
    assert sweep.wait(20) == 75


def test_of_a_sweep_that_was_killed_nobody_starts_the_rest_and_its_arm_can_be_ended(
    folders: list[Path], sweep: subprocess.Popen[str]
) -> None:
    sweep.kill()
    sweep.wait()
    gone = ("waiting", "the sweep that was to start it has gone")
    assert found(folders) == [("running", ""), gone, gone]
    assert main(["cancel", str(folders[0].parent)]) == 0
    end = time.monotonic() + 20
    while found(folders)[0] != gone:
        assert time.monotonic() < end
        time.sleep(0.05)
