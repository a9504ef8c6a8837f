"""The command line of Hydra's commands, and what a run may say to Hydra itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from beni.config.command import options_first
from beni.config.compose import compose
from beni.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "put"),
    [
        ("a=1,2 -m", "-m a=1,2"),
        ("a=b --config-dir d c=d", "--config-dir d a=b c=d"),
        ("a=b --config-dir=d c=d", "--config-dir=d a=b c=d"),
        ("a=b -cd d c=d --cfg job", "-cd d --cfg job a=b c=d"),
        ("a=b --info", "--info a=b"),
        ("a=b --info plugins c=d", "--info plugins a=b c=d"),
        ("--info a=b", "--info a=b"),
        ("~a +b=c -sc query=bash", "-sc ~a +b=c query=bash"),
        ("a=b --config-dir", "--config-dir a=b"),
    ],
)
def test_options_may_stand_among_overrides(given: str, put: str) -> None:
    assert options_first(given.split()) == put.split()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hydra.run.dir=/elsewhere", ("hydra.run.dir=/elsewhere has no effect", "set paths.runs and study.name")),
        ("hydra.job.chdir=true", ("hydra.job.chdir=true", "leave out hydra.job.chdir")),
    ],
)
def test_a_value_of_hydra_that_does_nothing_is_refused(override: str, words: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert all(part in str(caught.value) for part in words)


SWEEPS = {
    "params: {train.seed: '0,1'}": ("hydra.sweeper.params names values", "write mode: MULTIRUN below hydra:"),
    "arms: ['train.seed=1']": ("hydra.sweeper.arms names values", "write mode: MULTIRUN below hydra:"),
    "arms: [null]": ("hydra.sweeper.arms=[None], expected a list of texts", "write arms: ["),
    "arms: train.seed=1": ("hydra.sweeper.arms=train.seed=1, expected a list", "write arms: ["),
    "arms: [[a, b]]": ("expected a list of texts", "write arms: ["),
    "params: [a]": ("hydra.sweeper.params=['a'], expected a mapping", "write params: {"),
}


@pytest.mark.parametrize("sweeper", SWEEPS)
def test_a_sweep_that_would_not_be_one_is_refused(tmp_path: Path, sweeper: str) -> None:
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\nhydra:\n  sweeper:\n    {sweeper}\n"
    (tmp_path / "experiment" / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=x"], config_dir=tmp_path)
    assert all(part in str(caught.value) for part in SWEEPS[sweeper])


def test_a_swept_key_with_a_dot_is_explained() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=resampler_pair", "hydra.sweeper.params.train.seed=0"])
    problem, fix = str(caught.value).splitlines()
    assert problem.startswith("unknown key hydra.sweeper.params.train.seed: the keys of hydra.sweeper.params have dots")
    assert fix == "  fix: write 'hydra.sweeper.params={train.seed: ...}', or leave it out and set train.seed"
    fixed = ["experiment=resampler_pair", "hydra.sweeper.params={train.seed: 0}"]
    assert compose(fixed)["study"]["name"] == "resampler_pair"


def test_a_sweep_that_says_its_mode_composes() -> None:
    assert compose(["experiment=resampler_pair"])["study"]["name"] == "resampler_pair"


def test_the_home_of_the_user_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose(["paths.runs='~/x'"])["paths"]["runs"] == str(tmp_path / "x")
    assert compose(["paths.runs=x"])["paths"]["runs"] == "x"
