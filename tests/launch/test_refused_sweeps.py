"""A sweep that cannot start says why, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from beni.errors import BeniError, ConfigError, ResourceError
from beni.launch import sweep as sweeping
from beni.runs.identity import run_folder

Runs = Callable[..., dict[str, Any]]


@pytest.fixture
def sweep(tiny_run: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], dict[str, Any]]:
    """Launches one arm with the given launcher; returns its run."""
    run = tiny_run()
    monkeypatch.setattr(sweeping, "freeze", lambda config, hydra: run)
    monkeypatch.setattr(sweeping, "check_arms", lambda runs: None)

    def start(launch: Callable[..., Any]) -> dict[str, Any]:
        sweeping.sweep([["train.seed=0"]], lambda arm: SimpleNamespace(hydra=None), launch)
        return run

    start.run = run
    return start


def test_a_launcher_that_takes_no_arm_leaves_no_folder(sweep: Any, tmp_path: Path) -> None:
    def refuses(arms: Sequence[Any]) -> Any:
        assert run_folder(sweep.run).is_dir()
        raise RuntimeError("Could not detect srun\nmore")

    with pytest.raises(ResourceError, match=r"(?s)accepted no arm: Could not detect srun\n  fix: .*launcher=local"):
        sweep(refuses)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_arm_that_a_scheduler_has_taken_keeps_its_folder(sweep: Any) -> None:
    def loses_sight(arms: Sequence[Any]) -> Any:
        job = run_folder(sweep.run).parent / ".submitit" / "7"
        job.mkdir(parents=True)
        (job / "7_submitted.pkl").touch()
        raise RuntimeError("the job is gone")

    with pytest.raises(RuntimeError, match="the job is gone"):
        sweep(loses_sight)
    assert run_folder(sweep.run).is_dir()


def test_an_error_of_a_user_is_passed_on_and_what_was_there_before_stays(sweep: Any) -> None:
    def fails(arms: Sequence[Any]) -> Any:
        raise ConfigError("bad")

    with pytest.raises(BeniError, match="bad"):
        sweep(fails)
    with pytest.raises(ResourceError):
        sweep(lambda arms: [].pop())
    assert run_folder(sweep.run).is_dir()


@pytest.mark.parametrize("override", ["connector=glob(zzz*)", "train.seed=range(3,3)"])
def test_a_sweep_over_nothing_is_refused(override: str) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    from beni.paths import conf_dir

    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    parser = OverridesParser.create(config_loader=loader)
    with pytest.raises(ConfigError, match=r"(?s)has no value to sweep over.*fix: name some"):
        sweeping.require_values(parser.parse_overrides([override]))
    sweeping.require_values(parser.parse_overrides(["connector=glob(lin*)", "train.seed=0,1", "train.steps=3"]))
