"""What a sweep does around its launcher: which arms there are, how they are checked, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from beni.errors import ConfigError, DataError
from beni.launch import sweep as module
from beni.launch.submit import ArmFailed, ImpossibleArm
from beni.launch.sweep import arms_of, launch_here, sweep
from beni.runs.status import read_status, write_status

Runs = Callable[..., dict[str, Any]]


@pytest.fixture
def composing(tiny_run: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """Overrides -> what stands for Hydra's config; nothing is impossible."""
    monkeypatch.setattr(module, "freeze", lambda config, choices: config.run)
    monkeypatch.setattr(module, "check_arms", lambda runs: None)
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices={}))
    return lambda arm: SimpleNamespace(run=tiny_run(*arm), hydra=hydra)


def test_every_arm_meets_every_value_and_the_command_line_comes_last() -> None:
    assert arms_of(["a=1 b='x y'", ""], [["c=1"], ["c=2"]]) == [
        ["a=1", "b=x y", "c=1"],
        ["a=1", "b=x y", "c=2"],
        ["c=1"],
        ["c=2"],
    ]


def test_an_arm_that_is_no_command_line_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweeper.arms: a='x: No closing quotation\n  fix: "):
        arms_of(["a='x"], [[]])


def test_arms_that_are_the_same_run_are_run_once_and_each_has_its_own_end(composing: Any) -> None:
    launched: list[Any] = []

    def launch(arms: Any) -> list[JobReturn]:
        launched.extend(arms)
        write_status(folders["train.seed=1"], state="finished", step=2)
        return [
            JobReturn(status=JobStatus.COMPLETED),
            JobReturn(status=JobStatus.FAILED, _return_value=DataError("no such file\n  fix: x")),
        ]

    from beni.runs.identity import run_folder

    folders = {seed: run_folder(composing([seed]).run) for seed in ("train.seed=1", "train.seed=2")}
    arms = [["train.seed=1"], ["train.seed=2"], ["train.seed=1"]]
    with pytest.raises(ArmFailed) as caught:
        sweep(arms, composing, launch)
    assert launched == [["train.seed=1"], ["train.seed=2"]]
    failed = folders["train.seed=2"]
    assert str(caught.value).splitlines()[:2] == ["1 of 2 arms failed:", f"  {failed.name}: no such file"]
    assert f"python -m beni.compare {failed.parent}" in str(caught.value)
    assert read_status(failed)["error"]["type"] == "DataError"


def test_nothing_is_written_or_launched_when_an_arm_is_impossible(
    composing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def refuse(runs: Any) -> None:
        raise ImpossibleArm("no arm was started")

    monkeypatch.setattr(module, "check_arms", refuse)
    with pytest.raises(ImpossibleArm):
        sweep([["train.seed=1"]], composing, lambda arms: pytest.fail("launched"))
    assert list(tmp_path.iterdir()) == []


def test_here_arms_run_one_after_another_and_give_back_how_they_ended(
    composing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run_arms(folders: Any, say: Any) -> list[str | None]:
        seen.extend(folders)
        return ["no such file", None]

    monkeypatch.setattr(module, "run_arms", run_arms)
    results = launch_here([["train.seed=1"], ["train.seed=2"]], composing, print)
    assert [read_status(folder)["state"] for folder in seen] == ["queued", "queued"]
    assert [result.status for result in results] == [JobStatus.FAILED, JobStatus.COMPLETED]
    assert [result.overrides for result in results] == [["train.seed=1"], ["train.seed=2"]]
    assert str(results[0]._return_value) == "no such file"
