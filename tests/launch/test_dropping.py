"""``study.stop``: an arm that can no longer win is not trained, and nobody takes that for a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from beni.launch import job, jobs, launch, states
from beni.launch.dropping import dropped
from beni.launch.states import states_of
from beni.launch.submit import settle_arm
from beni.runs.lock import lock_of
from beni.runs.read import runs_of
from beni.runs.status import read_status, write_status
from support.processes import run_module

Make = Callable[..., Path]


def queued(make_run: Make, seeds: int, stop: float | None, better: float = 0.9) -> Path:
    """Two arms with some finished seeds, 0.4 and ``better`` on average, and a run of the worse one that waits."""
    values = {"study__stop": stop}
    for seed in range(seeds):
        off = (0.0, 0.025, -0.025)[seed % 3]
        make_run("none", seed, right=0.4 + off, **values)
        make_run("perceiver", seed, right=better - off, **values)
    return make_run("none", seeds, state="queued", **values)


def why(folder: Path) -> str:
    return str(dropped(folder, yaml.safe_load((folder / "config.yaml").read_text())))


def test_an_arm_that_is_far_behind_for_some_seeds_is_dropped(make_run: Make) -> None:
    assert why(queued(make_run, 6, 0.01)).startswith("resampler=perceiver is better by 0.5")


@pytest.mark.parametrize(("seeds", "stop", "better"), [(1, 0.01, 0.9), (6, None, 0.9), (6, 0.01, 0.4)])
def test_an_arm_goes_on_after_one_seed_without_the_option_and_where_it_is_as_good(
    make_run: Make, seeds: int, stop: float | None, better: float
) -> None:
    assert why(queued(make_run, seeds, stop, better)) == "None"


def running(folder: Path) -> Path:
    """The run under seed 1 of the better arm, which says that it runs."""
    [other] = folder.parent.glob("*perceiver*-s1-*")
    (other / "status.json").write_text(json.dumps({"state": "running", "step": 1}))
    return other


def test_a_seed_that_an_arm_has_not_ended_is_no_block(make_run: Make) -> None:
    folder = queued(make_run, 6, 0.01)
    with lock_of(running(folder)):
        assert why(folder) == "None"


def test_a_run_that_was_killed_has_ended(make_run: Make) -> None:
    folder = queued(make_run, 6, 0.01)
    running(folder)
    assert why(folder).startswith("resampler=perceiver is better by 0.5")


@pytest.mark.parametrize(
    ("told", "dropped"), [({"7": {"state": "RUNNING"}}, False), ({"7": {"state": "NODE_FAIL"}}, True), (None, False)]
)
def test_of_a_run_on_slurm_the_scheduler_tells_and_where_it_does_not_answer_the_arm_goes_on(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, told: dict[str, dict[str, str]] | None, dropped: bool
) -> None:
    folder = queued(make_run, 6, 0.01)
    jobs.note(running(folder), "submitted", backend="slurm", job="7")
    monkeypatch.setattr(states, "scheduler_states", lambda ids: told)
    assert (why(folder) != "None") is dropped


def test_the_scheduler_is_not_asked_where_its_answer_decides_nothing(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(make_run, 6, 0.01, better=0.4)
    jobs.note(running(folder), "submitted", backend="slurm", job="7")
    asked: list[object] = []
    monkeypatch.setattr(states, "scheduler_states", asked.append)
    assert (why(folder), asked) == ("None", [])


def test_the_job_of_a_dropped_arm_ends_well_without_training_and_is_no_failure(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(make_run, 6, 0.01)
    monkeypatch.setattr(job, "_frozen_here", lambda _: yaml.safe_load((folder / "config.yaml").read_text()))
    assert job.main([str(folder)]) == 0
    status = read_status(folder)
    assert status["state"] == "dropped"
    assert "after 3 seeds" in status["error"]["message"]
    assert settle_arm(folder) is None
    [state] = states_of([folder])
    assert (state.state, state.over) == ("dropped", True)
    assert state.reason.startswith("resampler=perceiver is better")


@pytest.mark.parametrize(("stop", "expected"), [(None, [0, 1, 0, 1]), (0.01, [0, 0, 1, 1])])
def test_runs_are_launched_seed_by_seed_where_arms_may_be_dropped(stop: float | None, expected: list[int]) -> None:
    runs = [({"study": {"stop": stop}, "train": {"seed": seed}, "arm": arm}, None) for arm in "ab" for seed in (0, 1)]
    ordered = launch._in_blocks(runs)
    assert [run["train"]["seed"] for run, _ in ordered] == expected
    assert [run["arm"] for run, _ in ordered if run["train"]["seed"] == 0] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_on_this_machine_does_not_train_an_arm_that_is_beaten_and_says_so(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    def sweep(seeds: str) -> str:
        arms = ("resampler=none,avg_pool", f"train.seed={seeds}", "study.stop=0.5", "study.name=race")
        done = run_module("beni.train", "-m", *tiny_overrides, *arms, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    sweep("0,1")
    study = tmp_path / "runs" / "race"
    for folder in runs_of(study):  # scores that leave no doubt, with a spread between seeds
        lead = 0.0 if "avg_pool" in folder.name else 0.5 + 0.001 * ("-s1-" in folder.name)
        write_status(folder, **read_status(folder) | {"eval/accuracy": 0.3 + lead})
    assert "1 run finished, 1 dropped by study.stop" in sweep("2")
    [last] = [folder for folder in runs_of(study) if "avg_pool" in folder.name and "-s2-" in folder.name]
    assert read_status(last)["state"] == "dropped"
    assert "1 of 2 runs were dropped by study.stop" in sweep("2")
