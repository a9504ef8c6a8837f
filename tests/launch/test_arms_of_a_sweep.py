"""What a sweep does around its launcher: which arms there are, how they are checked, and what is launched."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from beni.errors import ConfigError, ResourceError
from beni.launch import jobs, local, processes, turns
from beni.launch import launch as launching
from beni.launch import sweep as module
from beni.launch.launch import Handed
from beni.launch.slurm import Refused
from beni.launch.submit import ArmFailed, ImpossibleArm, freeze_arm
from beni.launch.sweep import arms_of, require_values, sweep
from beni.runs.identity import run_folder
from beni.runs.status import read_status, write_status

Runs = Callable[..., dict[str, Any]]
FINE = {"problem": None, "tokens": 9, "trained": 10, "flops": 1e9, "memory": 2**30}


@pytest.fixture
def composing(tiny_run: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """Overrides -> what stands for Hydra's config; nothing is impossible."""
    monkeypatch.setattr(module, "freeze", lambda config, choices: config.run)
    monkeypatch.setattr(module, "check_arms", lambda runs: [FINE for _ in runs])
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices={}))
    return lambda arm: SimpleNamespace(run=tiny_run(*arm), hydra=hydra)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Instead of starting processes: what the backend was given, and how each run ends."""
    seen: dict[str, Any] = {"folders": [], "end": lambda folder: write_status(folder, state="finished", step=2)}

    def take(runs: Any, say: Any) -> Handed:
        seen["folders"] += list(runs)
        return Handed({folder: why for folder in runs if (why := seen["end"](folder))}, lambda: None)

    monkeypatch.setitem(launching.BACKENDS, "local", take)
    return seen


def test_every_arm_meets_every_value_and_the_command_line_comes_last() -> None:
    assert arms_of(["a=1 b='x y'", ""], [["c=1"], ["c=2"]]) == [
        ["a=1", "b=x y", "c=1"],
        ["a=1", "b=x y", "c=2"],
        ["c=1"],
        ["c=2"],
    ]


def test_a_value_of_an_arm_that_the_command_line_replaces_is_told(composing: Any, given: Any) -> None:
    said: list[str] = []
    sweep(
        [["train.seed=1", "train.seed=3"], ["train.seed=2", "train.seed=3"], ["train.seed=4"]], composing, said.append
    )
    holds = "what the command line gives holds for all arms"
    assert said[:2] == [f"train.seed=3 replaces train.seed={one}: {holds}" for one in (1, 2)]
    assert not [line for line in said[2:] if holds in line]


def test_an_arm_that_is_no_command_line_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweeper.arms: a='x: No closing quotation\n  fix: "):
        arms_of(["a='x"], [[]])


def test_arms_that_are_the_same_run_are_launched_once_and_each_has_its_own_end(composing: Any, given: Any) -> None:
    said: list[str] = []
    folders = {seed: run_folder(composing([seed]).run) for seed in ("train.seed=1", "train.seed=2")}
    error = {"type": "DataError", "message": "no such file\n  fix: x", "traceback": ""}

    def end(folder: Path) -> None:
        failed = folder == folders["train.seed=2"]
        write_status(folder, step=2, **({"state": "failed", "error": error} if failed else {"state": "finished"}))

    given["end"] = end
    with pytest.raises(ArmFailed) as caught:
        sweep([["train.seed=1"], ["train.seed=2"], ["train.seed=1"]], composing, said.append)
    assert given["folders"] == list(folders.values())
    assert said[0] == f"1 of 3 arms are runs that earlier arms are, and count once: {folders['train.seed=1'].name}"
    assert said[1].startswith("2 runs: 9 visual tokens, 10 trainable parameters, 2.0G training FLOPs")
    failed = folders["train.seed=2"]
    assert str(caught.value).splitlines()[:2] == ["1 of 2 arms failed:", f"  {failed.name}: no such file"]
    assert f"python -m beni.compare {failed.parent}" in str(caught.value)


def test_what_is_finished_or_at_work_is_left_alone(composing: Any, given: Any) -> None:
    from beni.runs.lock import lock_of

    said: list[str] = []
    arms = [[f"train.seed={seed}"] for seed in range(3)]
    folders = [run_folder(composing(arm).run) for arm in arms]
    sweep(arms[:1], composing, said.append)
    sweep(arms[1:2], composing, said.append)
    write_status(folders[1], state="running", step=1)
    given["folders"].clear()
    with lock_of(folders[1]):
        given["end"] = lambda folder: write_status(folder, state="finished", step=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launching, "_ended", lambda awaited, say: [])
            sweep(arms, composing, said.append)
    assert given["folders"] == [folders[2]]
    assert "1 of 3 runs have finished before" in said
    assert "1 of 3 runs are at work, or wait for their turn, already" in said
    assert said[0].startswith("1 run: 9 visual tokens, 10 trainable parameters, 1.0G training FLOPs, up to 1.0 GiB")


def test_a_run_that_waits_in_a_sweep_that_still_works_is_left_to_it(composing: Any, given: Any) -> None:
    folder = run_folder(composing(["train.seed=1"]).run)
    folder.mkdir(parents=True)
    write_status(folder, state="queued", step=0)
    (folder / "config.yaml").touch()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "_ended", lambda awaited, say: [])
        jobs.note(folder, "submitted", backend="local", code="x", **processes.named())
        sweep([["train.seed=1"]], composing, said.append)
        assert given["folders"] == []
        assert "1 of 1 runs are at work, or wait for their turn, already" in said
        jobs.note(folder, "ended", job=processes.named()["job"], next="SIGTERM ended its sweep")
        (folder / "config.yaml").unlink()
        sweep([["train.seed=1"]], composing, said.append)
        assert given["folders"] == [folder]


def test_nothing_is_written_or_launched_when_an_arm_is_impossible(
    composing: Any, given: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(runs: Any) -> None:
        raise ImpossibleArm("no arm was started")

    monkeypatch.setattr(module, "check_arms", refuse)
    with pytest.raises(ImpossibleArm):
        sweep([["train.seed=1"]], composing, lambda text: None)
    assert given["folders"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_no_backend_takes_leaves_no_folder(composing: Any, given: Any, tmp_path: Path) -> None:
    given["end"] = lambda folder: "sbatch: invalid partition\n  fix: set launcher.partition"
    with pytest.raises(ResourceError, match=r"(?s)no run was launched: sbatch: invalid partition\n  fix: "):
        sweep([["train.seed=1"], ["train.seed=2"]], composing, lambda text: None)
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_of_several_runs_those_that_were_refused_are_named_and_the_others_stay(composing: Any, given: Any) -> None:
    first, second = (run_folder(composing([f"train.seed={seed}"]).run) for seed in (1, 2))

    def end(folder: Path) -> str | None:
        if folder == second:
            return "sbatch: full\n  fix: wait"
        write_status(folder, state="finished", step=2)
        return None

    given["end"] = end
    with pytest.raises(ArmFailed, match="sbatch: full"):
        sweep([["train.seed=1"], ["train.seed=2"]], composing, lambda text: None)
    assert read_status(first)["state"] == "finished"
    assert not second.exists()


def test_a_refused_arm_is_one_of_all_that_the_command_names_also_where_none_is_waited_for(
    composing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [["launcher=slurm_cpu", f"train.seed={seed}"] for seed in range(3)]
    refused = run_folder(composing(arms[1]).run)
    monkeypatch.setattr(launching.slurm, "require_slurm", lambda: None)
    monkeypatch.setitem(launching.BACKENDS, "slurm", lambda runs, say: Handed({refused: "sbatch: full"}, lambda: None))
    with pytest.raises(ArmFailed, match=f"^1 of 3 arms failed:\n  {refused.name}: sbatch: full"):
        sweep(arms, composing, lambda text: None)


@pytest.mark.parametrize("earlier", [False, True])
def test_of_a_study_that_is_refused_nothing_stays_but_what_was_there(
    composing: Any, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    arms = [["launcher=slurm_cpu", f"train.seed={seed}"] for seed in range(2)]
    study = run_folder(composing(arms[0]).run).parent

    def refuse(folders: Any, launchers: Any, code: Any) -> list[Refused]:
        (study / ".jobs").mkdir(exist_ok=True)
        (study / ".jobs" / "script.sh").touch()
        return [Refused(list(folders), "sbatch: full")]

    monkeypatch.setattr(launching.slurm, "require_slurm", lambda: None)
    monkeypatch.setattr(launching.slurm, "submit", refuse)
    if earlier:
        freeze_arm(composing(["train.seed=7"]).run)
    with pytest.raises(ResourceError, match="no run was launched: sbatch: full"):
        sweep(arms, composing, lambda text: None)
    assert study.exists() == earlier
    assert not earlier or (study / ".jobs" / "script.sh").exists()


def test_a_second_command_waits_until_the_first_has_submitted_and_finds_it_done(
    composing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [["launcher=slurm_cpu", f"train.seed={seed}"] for seed in range(2)]
    [study] = {run_folder(composing(arm).run).parent for arm in arms}
    submitted: list[Path] = []
    said: list[str] = []
    threads: list[threading.Thread] = []

    def submit(runs: Any, say: Any) -> Handed:
        submitted.extend(runs)
        if not threads:  # the second command comes while the first one submits
            assert (study / turns.LOCK).read_text().startswith(f"process {os.getpid()} on ")
            threads.append(threading.Thread(target=sweep, args=(arms, composing, said.append)))
            threads[0].start()
            while not any("another command launches runs" in line for line in said):
                time.sleep(0.05)
        for folder in runs:
            jobs.note(folder, "submitted", backend="slurm", job="7")
        return Handed({}, lambda: None)

    monkeypatch.setattr(turns, "TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(launching.slurm, "require_slurm", lambda: None)
    monkeypatch.setattr("beni.launch.states.scheduler_states", lambda ids: {one: {"state": "PENDING"} for one in ids})
    monkeypatch.setitem(launching.BACKENDS, "slurm", submit)
    sweep(arms, composing, lambda text: None)
    threads[0].join(60)
    assert sorted(submitted) == sorted(run_folder(composing(arm).run) for arm in arms)
    assert f"another command launches runs of {study}: process {os.getpid()} on " in said[1]
    assert said[2] == "2 of 2 runs are at work, or wait for their turn, already"
    assert not (study / turns.LOCK).exists()


def test_a_second_command_finds_runs_of_this_machine_taken_before_the_first_has_begun_with_them(
    composing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arms = [[f"train.seed={seed}"] for seed in range(2)]
    said: list[str] = []
    taken: list[Path] = []
    threads: list[threading.Thread] = []

    def snapshot(study: Path) -> Path:
        if not threads:  # the second command comes while the first one copies the code
            threads.append(threading.Thread(target=sweep, args=(arms, composing, said.append)))
            threads[0].start()
            while not any("another command launches runs" in line for line in said):
                time.sleep(0.05)
        return tmp_path / "code"

    def run(taking: local.Sweep) -> None:
        taken.extend(taking.folders)
        while len(said) < 3:
            time.sleep(0.05)
        for folder in taking.folders:
            write_status(folder, state="finished", step=2)

    monkeypatch.setattr(turns, "TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(launching, "POLL_S", 0.1)
    monkeypatch.setattr(launching, "take_snapshot", snapshot)
    monkeypatch.setattr(local.Sweep, "run", run)
    sweep(arms, composing, lambda text: None)
    threads[0].join(60)
    assert sorted(taken) == sorted(run_folder(composing(arm).run) for arm in arms)
    assert said[2] == "2 of 2 runs are at work, or wait for their turn, already"


def test_a_command_that_waits_for_long_says_for_whom(composing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = run_folder(composing(["train.seed=1"]).run).parent
    monkeypatch.setattr(turns, "TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    with (
        turns.turn([study], str),
        pytest.raises(ResourceError, match=rf"process {os.getpid()} on .*\n  fix: wait until"),
    ):
        sweep([["train.seed=1"]], composing, lambda text: None)
    assert not study.exists()


@pytest.mark.parametrize("override", ["connector=glob(zzz*)", "train.seed=range(3,3)"])
def test_a_sweep_over_nothing_is_refused(override: str) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    from beni.paths import conf_dir

    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    parser = OverridesParser.create(config_loader=loader)
    with pytest.raises(ConfigError, match=r"(?s)has no value to sweep over.*fix: name some"):
        require_values(parser.parse_overrides([override]))
    require_values(parser.parse_overrides(["connector=glob(lin*)", "train.seed=0,1", "train.steps=3"]))
