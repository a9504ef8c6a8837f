"""The bookkeeping around arms, without training any."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from beni.errors import BeniError, CompositionError, ConfigError, DataError, Preempted, ResumeError
from beni.launch import launch, submit
from beni.launch.early import too_early
from beni.launch.states import State
from beni.launch.submit import ArmFailed, Frozen, ImpossibleArm, check_arms, freeze_arm, settle_arm
from beni.runs.frozen import load_frozen
from beni.runs.identity import run_folder
from beni.runs.lock import lock_of
from beni.runs.status import read_status, write_status

Runs = Callable[..., dict[str, Any]]


def raising(error: BaseException) -> Callable[..., None]:
    """Something that raises when it is called."""

    def fails(*_: Any) -> None:
        raise error

    return fails


def test_a_frozen_arm_waits_with_its_whole_config(tiny_run: Runs) -> None:
    run = tiny_run()
    folder = freeze_arm(run)
    assert folder == run_folder(run)
    assert load_frozen(folder) == run
    assert read_status(folder)["state"] == "queued"
    assert (read_status(folder)["step"], read_status(folder)["steps"]) == (0, 2)


@pytest.mark.parametrize("state", ["finished", "running"])
def test_freezing_leaves_an_arm_alone_that_is(tiny_run: Runs, state: str) -> None:
    folder = freeze_arm(tiny_run())
    write_status(folder, state=state, step=1)
    with lock_of(folder) if state == "running" else nullcontext():
        freeze_arm(tiny_run("tracker=tensorboard"))
        assert settle_arm(folder) == (None if state == "finished" else "in use by another process")
    assert read_status(folder)["state"] == state
    assert load_frozen(folder)["choices"]["tracker"] == "jsonl"


def test_an_arm_whose_process_was_killed_is_queued_again_with_what_is_asked_for_now(tiny_run: Runs) -> None:
    folder = freeze_arm(tiny_run())
    write_status(folder, state="running", step=1)
    freeze_arm(tiny_run("tracker=tensorboard"))
    assert read_status(folder)["state"] == "queued"
    assert load_frozen(folder)["choices"]["tracker"] == "tensorboard"


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_an_arm_that_starts_over_sets_aside_what_is_there_and_then_goes_on(tiny_run: Runs, state: str) -> None:
    folder = freeze_arm(tiny_run())
    error = None if state == "finished" else {"type": "DataError", "message": "gone", "traceback": ""}
    write_status(folder, state=state, step=1, error=error)
    assert freeze_arm(tiny_run("checkpoint.resume=never")) == folder
    assert (read_status(folder)["state"], read_status(folder)["step"]) == ("queued", 0)
    assert load_frozen(folder)["checkpoint"]["resume"] == "auto"
    kept = read_status(folder.with_name(f"{folder.name}.old1"))
    assert (kept["state"], kept["error"]) == (state, error)


def test_an_arm_keeps_its_place_in_the_sweep_that_launched_it_first(tiny_run: Runs) -> None:
    folder = freeze_arm(tiny_run(), {"command": "c", "launched": "2026-01-01T00:00:00+00:00", "place": 2})
    write_status(folder, state="preempted", step=1)
    freeze_arm(tiny_run(), {"command": "retry", "launched": "2026-01-02T00:00:00+00:00", "place": 0})
    kept = {"command": "retry", "launched": "2026-01-01T00:00:00+00:00", "place": 2}
    assert json.loads((folder / "origin.json").read_text()) == kept
    freeze_arm(tiny_run(), {"command": "retry"})
    assert json.loads((folder / "origin.json").read_text()) == kept


def test_a_sweep_numbers_its_arms_as_they_were_named(tiny_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "hand_over", lambda runs, say: launch.Handed({}, lambda: None))
    monkeypatch.setattr(launch, "finish", lambda *_: None)
    runs = [
        (tiny_run(f"resampler={arm}", "study.stop=0.01", f"train.seed={seed}"), "c")
        for arm in ("none", "avg_pool")
        for seed in (1, 0)
    ]
    launch.launch(runs, lambda _: None)
    written = [json.loads((run_folder(run) / "origin.json").read_text()) for run, _ in runs]
    assert [one["place"] for one in written] == [0, 1, 2, 3]
    assert len({one["launched"] for one in written}) == 1


def test_an_arm_that_nobody_takes_leaves_its_folder_as_it_was(tiny_run: Runs) -> None:
    new = Frozen.of(tiny_run(), {"command": "c"})
    assert json.loads((new.folder / "origin.json").read_text()) == {"command": "c"}
    new.withdraw()
    assert not new.folder.parent.exists()

    folder = freeze_arm(tiny_run())
    write_status(folder, state="preempted", step=1)
    again = Frozen.of(tiny_run(), {"command": "c"})
    assert read_status(folder)["state"] == "queued"
    again.withdraw()
    assert (read_status(folder)["state"], read_status(folder)["step"]) == ("preempted", 1)


def test_a_launcher_that_holds_a_password_is_not_frozen(tiny_run: Runs) -> None:
    run = tiny_run("launcher=slurm_cpu")
    run["launcher"]["setup"] = ["export WANDB_API_KEY=s3cret0123"]  # as retry sets it, which composes nothing
    with pytest.raises(ConfigError, match="holds a password") as caught:
        freeze_arm(run)
    assert "s3cret" not in str(caught.value)
    assert not run_folder(run).exists()


def test_who_waits_hears_why_the_last_start_failed_and_not_the_one_before(tiny_run: Runs, monkeypatch: Any) -> None:
    folder = freeze_arm(tiny_run())
    write_status(folder, state="preempted", step=1, error={"type": "Preempted", "message": "evicted", "traceback": ""})
    ended = State(folder, "failed", read_status(folder), reason="DataError: row 3 has no image")
    monkeypatch.setattr(launch, "states_of", lambda folders: [ended])
    with pytest.raises(ArmFailed) as caught:
        launch.finish([folder], {}, lambda _: None)
    assert f"  {folder.name}: DataError: row 3 has no image\n" in str(caught.value)


def test_an_arm_that_was_taken_stays(tiny_run: Runs) -> None:
    new = Frozen.of(tiny_run(), {})
    with lock_of(new.folder):
        new.withdraw()
    write_status(new.folder, state="running", step=0)
    new.withdraw()
    assert new.folder.is_dir()


def test_an_arm_that_failed_is_queued_again_and_keeps_its_step(tiny_run: Runs) -> None:
    folder = freeze_arm(tiny_run())
    write_status(folder, state="failed", step=1, error={"type": "DataError", "message": "gone", "traceback": ""})
    freeze_arm(tiny_run("tracker=tensorboard"))
    status = read_status(folder)
    assert (status["state"], status["step"], status["error"]) == ("queued", 1, None)
    assert load_frozen(folder)["choices"]["tracker"] == "tensorboard"


def test_a_folder_without_a_frozen_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"config\.yaml"):
        load_frozen(tmp_path)


def test_a_job_that_a_signal_has_ended_exits_with_75(
    tiny_run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import beni.run
    from beni.launch import job

    def ends(run: dict[str, Any]) -> None:
        raise Preempted("SIGUSR2 after step 3")

    folder = freeze_arm(tiny_run())
    write_status(folder, state="preempted", step=3, error={"type": "Preempted", "message": "SIGUSR2 after step 3"})
    monkeypatch.setattr(beni.run, "train", ends)
    assert job.main([str(folder)]) == 75
    assert settle_arm(folder) == "SIGUSR2 after step 3"
    assert read_status(folder)["state"] == "preempted"
    write_status(folder, state="queued", step=0)  # the signal came before the run has opened its folder
    assert job.main([str(folder)]) == 75
    assert (settle_arm(folder), read_status(folder)["state"]) == ("SIGUSR2 after step 3", "preempted")


def test_a_run_that_has_ended_by_a_signal_itself_is_not_ended_by_it_again() -> None:
    too_early(signal.SIGTERM, None)
    with pytest.raises(Preempted, match="SIGTERM before the run began"):
        too_early(signal.SIGTERM, sys._getframe())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_while_a_start_still_loads_leaves_the_run_preempted(tiny_run: Runs, number: signal.Signals) -> None:
    folder = freeze_arm(tiny_run())
    job = [sys.executable, "-X", "importtime", "-m", "beni.launch.job", str(folder)]
    with subprocess.Popen(job, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "beni.launch.dropping" not in (line := process.stderr.readline()):  # from now on it loads what is large
            assert line
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 75
    assert f"{number.name} before the run began" in said
    status = read_status(folder)
    assert (status["state"], status["error"]["type"]) == ("preempted", "Preempted")


@pytest.mark.parametrize("state", ["queued", "preempted", "running", "failed"])
def test_an_error_at_the_beginning_of_a_start_is_noted_whatever_the_run_was_before(
    tiny_run: Runs, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    from beni.launch import job

    folder = freeze_arm(tiny_run())
    write_status(folder, state=state, step=1, error={"type": "Old", "message": "old", "traceback": ""})
    monkeypatch.setattr("beni.run.train", raising(DataError("the images are gone")))
    assert job.main([str(folder)]) == 2
    status = read_status(folder)
    assert (status["state"], status["step"], status["error"]["message"]) == ("failed", 1, "the images are gone")


@pytest.mark.parametrize("who", ["finished", "in use", "noted", "no run"])
def test_an_error_of_a_start_leaves_a_status_alone_that_is_not_its_own(
    tiny_run: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: str
) -> None:
    from beni.launch import job

    folder = freeze_arm(tiny_run()) if who != "no run" else tmp_path
    if who != "no run":
        write_status(folder, state="finished" if who == "finished" else "preempted", step=1)

    def train(run: dict[str, Any]) -> None:
        if who == "noted":  # by another process of the run
            write_status(folder, state="failed", error={"type": "DataError", "message": "first", "traceback": ""})
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr("beni.run.train", train)
    before = read_status(folder)
    if who == "no run":
        assert job.main([str(folder)]) == 2
        assert not (folder / "status.json").exists()
        return
    with lock_of(folder) if who == "in use" else nullcontext(), pytest.raises(RuntimeError):
        job.main([str(folder)])
    status = read_status(folder)
    assert status == before if who != "noted" else status["error"]["message"] == "first"


def test_the_reason_a_run_noted_itself_is_kept(tmp_path: Path) -> None:
    write_status(
        tmp_path, state="failed", error={"type": "DataError", "message": "no such file\nfix", "traceback": "t"}
    )
    assert settle_arm(tmp_path, RuntimeError("later")) == "no such file"
    assert json.loads((tmp_path / "status.json").read_text())["error"]["traceback"] == "t"


def test_an_error_brought_back_by_a_launcher_is_noted(tmp_path: Path) -> None:
    write_status(tmp_path, state="queued", step=0)
    assert settle_arm(tmp_path, ConfigError("bad value")) == "bad value"
    assert read_status(tmp_path)["error"]["type"] == "ConfigError"


def test_a_bug_in_the_check_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback: boom")
    monkeypatch.setattr(submit.subprocess, "run", lambda *a, **k: crashed)
    with pytest.raises(RuntimeError, match="boom") as caught:
        check_arms([{}])
    assert not isinstance(caught.value, BeniError)


def test_every_impossible_arm_is_named(tiny_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [{"problem": one} for one in (None, "E-X: too wide", "E-Y: too long")]
    answer = subprocess.CompletedProcess([], 0, stdout=f"noise\n{json.dumps(said)}\n", stderr="")
    monkeypatch.setattr(submit.subprocess, "run", lambda *a, **k: answer)
    with pytest.raises(ImpossibleArm) as caught:
        check_arms([tiny_run(f"train.seed={seed}") for seed in range(3)])
    assert "2 of 3" in str(caught.value)
    assert "-s1-" in str(caught.value)
    assert "E-X: too wide" in str(caught.value)
    assert "E-Y: too long" in str(caught.value)
    assert "-s0-" not in str(caught.value)


def test_an_error_with_keywords_survives_the_way_back_from_a_job() -> None:
    error = CompositionError("E-DIM", "12 is not 13", groups=("vision", "llm"), fix="set x=13")
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert (back.code, back.groups, back.fix) == ("E-DIM", ("vision", "llm"), "set x=13")


def test_the_job_answers_help_without_torch() -> None:
    code = "import sys, beni.launch.job as j; c = j.main(['--help']); print(c, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert "RUN_FOLDER" in done.stderr


def test_a_frozen_run_reads_back_as_it_was_written(tiny_run: Runs) -> None:
    run = tiny_run("llm=smollm2_gguf", "llm.weights=random", "template=chatml")
    assert yaml.safe_load((freeze_arm(run) / "config.yaml").read_text()) == run
