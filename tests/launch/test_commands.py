"""``python -m beni.launch``: what its commands take, refuse and say."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from beni.launch import __main__ as commands
from beni.launch import jobs, processes, retry
from beni.launch.__main__ import main
from beni.launch.launch import Handed
from beni.launch.submit import freeze_arm
from beni.runs.status import write_status

ERROR = {"type": "DataError", "message": "row 3 has no image", "traceback": ""}


@pytest.fixture
def failed(tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """The study of one frozen run that has failed."""
    folder = freeze_arm(tiny_run())
    write_status(folder, state="failed", step=1, error=ERROR)
    return folder.parent


def test_a_study_that_was_moved_is_not_launched_again_in_its_old_place(
    failed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = failed.with_name("moved")
    shutil.move(failed, moved)
    assert main(["retry", str(moved)]) == 2
    said = capsys.readouterr().err
    [folder] = moved.glob("*/")
    assert f"{folder} holds the run of {failed / folder.name}" in said
    assert f"fix: move it to {failed}" in said
    assert said.rstrip().endswith("study.name=moved")
    assert not failed.exists(), "nothing is written there"
    other = failed.parent.with_name("elsewhere")
    shutil.copytree(moved, other / "moved")
    assert main(["retry", str(other / "moved")]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"study.name=moved paths.runs={other}")


def on_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """A run that SLURM was given, on a machine without SLURM."""
    jobs.note(folder, "submitted", backend="slurm", job="7", logs="", code="abc")
    monkeypatch.setenv("PATH", str(path))


def test_without_slurm_cancel_is_one_screen(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = failed.glob("*/")
    write_status(folder, state="running", step=1)
    on_slurm(folder, monkeypatch, tmp_path)
    assert main(["cancel", str(failed)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ResourceError: scancel cannot be found on this machine; nobody ends 7\n  fix: ")


def test_where_slurm_is_silent_retry_says_what_it_does_not_know(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = failed.glob("*/")
    write_status(folder, state="preempted", step=1, error=ERROR)
    on_slurm(folder, monkeypatch, tmp_path)
    assert main(["retry", str(failed)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("SLURM does not answer: whether tiny_vit-")
    assert told[1] == "nothing to retry"


def test_values_of_the_launcher_stand_before_and_after_options(
    failed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[dict[str, Any]] = []
    monkeypatch.setattr(retry, "check_arms", lambda runs: None)
    monkeypatch.setattr(
        retry, "hand_over", lambda runs, say: Handed(launched.extend(runs.values()) or {}, lambda: None)
    )
    monkeypatch.setattr(retry, "finish", lambda *arguments: None)
    for words in (["--run", "s0", "launcher.jobs=2"], ["launcher.jobs=2", "--run=s0"]):
        write_status(next(failed.glob("*/")), state="failed", step=1, error=ERROR)
        assert main(["retry", str(failed), *words]) == 0
    assert [run["launcher"]["jobs"] for run in launched] == [2, 2]
    for words in (["retry", str(failed), "--nothing"], ["cancel", str(failed), "launcher.jobs=2"]):
        with pytest.raises(SystemExit):
            main(words)
        assert f"unrecognized arguments: {words[2]}" in capsys.readouterr().err


def test_of_two_at_the_same_time_one_submits(
    failed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[Path] = []

    def submit(runs: dict[Path, Any], _: Any) -> Handed:
        for folder in runs:
            time.sleep(0.5)
            launched.append(folder)
            jobs.note(folder, "submitted", backend="local", code="x", **processes.named())
        return Handed({}, lambda: None)

    monkeypatch.setattr(retry, "check_arms", lambda runs: None)
    monkeypatch.setattr(retry, "hand_over", submit)
    monkeypatch.setattr(retry, "finish", lambda *arguments: None)
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(main, [["retry", str(failed)]] * 2))
    assert codes == [0, 0]
    assert launched == list(failed.glob("*/"))
    assert capsys.readouterr().out == "nothing to retry: every run has finished, runs or waits for its turn\n"


@pytest.mark.parametrize("value", ["[", "{a", "'x", "*"])
def test_a_value_that_is_no_yaml_is_one_screen(failed: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", str(failed), f"launcher.jobs={value}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ConfigError: launcher.jobs={value}: the value is no YAML (")
    assert "\n  fix: close its brackets and quotes" in said


@pytest.mark.timeout(60)
def test_watching_ends_where_nobody_will_start_what_waits(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = failed.glob("*/")
    write_status(folder, state="queued", step=0)
    jobs.note(folder, "submitted", backend="local", code="x", **processes.named())
    jobs.note(folder, "ended", job=processes.named()["job"], next="SIGTERM ended its sweep")
    for command in ("watch", "status"):
        assert main([command, str(failed)]) == 1
        told = capsys.readouterr().out.splitlines()
        assert told[-2] == f"1 of them wait, and nobody will start them: python -m beni.launch retry {failed} does"
        assert told[-1] == "1 run: 1 waiting"


def test_watching_goes_on_while_runs_are_on_their_way(failed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [folder] = failed.glob("*/")
    write_status(folder, state="queued", step=0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        write_status(folder, state="finished", step=2)

    monkeypatch.setattr(commands.time, "sleep", sleep)
    assert main(["watch", str(failed)]) == 0
    assert slept == [commands.WATCH_S]


def test_a_run_whose_config_is_gone_is_listed_and_the_others_are_launched(
    failed: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [damaged] = failed.glob("*/")
    other = freeze_arm(tiny_run("train.seed=1"))
    write_status(other, state="failed", step=1, error=ERROR)
    write_status(damaged, state="running", step=1)
    (damaged / "config.yaml").unlink()
    assert main(["status", str(failed)]) == 1
    told = capsys.readouterr().out
    assert damaged.name in told
    assert told.splitlines()[-1] == "2 runs: 1 lost, 1 failed"
    launched: list[Path] = []
    monkeypatch.setattr(retry, "check_arms", lambda runs: None)
    monkeypatch.setattr(retry, "hand_over", lambda runs, say: Handed(launched.extend(runs) or {}, lambda: None))
    monkeypatch.setattr(retry, "finish", lambda *arguments: None)
    assert main(["retry", str(failed)]) == 1
    assert launched == [other]
    assert "config.yaml cannot be read (No such file or directory), so it cannot" in capsys.readouterr().out
    write_status(damaged, state="finished", step=2)
    assert main(["retry", str(failed)]) == 0
    main(["status", str(failed)])
    assert "config.yaml cannot be read (No such file or directory)" in capsys.readouterr().out
