"""Arms on this machine: who runs when, on which cores and GPUs, and what a signal does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beni.errors import Preempted
from beni.launch import jobs, local
from beni.launch.local import run_arms, share_of_cores, share_of_gpus
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
    reasons = run_arms(folders, Path("code"), at_a_time, said.append)
    assert reasons == ["the process ended before the run finished (killed by signal 9)", None, None]
    assert read_status(folders[0])["error"]["message"] == reasons[0]
    assert [read_status(folder)["state"] for folder in folders] == ["failed", "finished", "finished"]
    assert f"arm 1/3 failed: {reasons[0]}" in said
    assert [line for line in said if line[7] == ":"] == ["arm 1/3: a", "arm 2/3: b", "arm 3/3: c"]


def test_arms_at_a_time_print_to_files_of_the_study_and_share_its_cores(
    folders: list[Path], programs: dict[str, str]
) -> None:
    programs["a"] = FINISHED + "import os; print(sorted(os.sched_getaffinity(0)), os.environ['PYTHONPATH'])"
    run_arms(folders, Path("/some/code"), 2, lambda text: None)
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
        run_arms(folders, Path("code"), 2, lambda text: None)
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


def test_a_process_is_ended_by_the_number_that_was_noted_and_no_other(folders: list[Path]) -> None:
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    own, other = (subprocess.Popen([*wait, str(folder)]) for folder in folders[:2])
    noted = {"job": str(own.pid), "node": local.HERE}
    try:
        assert not local.end(folders[1], noted), "the number is that of another run by now"
        assert not local.end(folders[0], noted | {"node": "elsewhere"})
        assert local.end(folders[0], noted)
        assert own.wait(10) == -signal.SIGTERM
        assert not local.end(folders[0], noted), "it has ended"
        assert other.poll() is None
    finally:
        for one in (own, other):
            one.kill()
            one.wait()
