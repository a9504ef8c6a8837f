"""Sweeps as a user starts them: arms that fail leave the others alone, and nothing starts when one is impossible."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.processes import run_module

pytestmark = pytest.mark.slow

EXPERIMENT = """# @package _global_
# A sweep in an experiment file.
study: {name: pair}
template: {overlong: truncate}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      template.max_length: 2048,8
"""
ARMS = """# @package _global_
# Arms whose choices belong together.
study: {name: pair}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      train.seed: 0,1
    arms:
      - resampler=none connector=linear
      - ARM
"""


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python -m beni.train`` in ``cwd``."""
    return run_module("beni.train", *arguments, cwd=cwd)


def compare(study: Path) -> str:
    done = run_module("beni.compare", str(study))
    assert done.returncode == 0, done.stderr
    return done.stdout


def statuses(study: Path) -> dict[str, dict[str, Any]]:
    """``status.json`` of every arm below ``study``, by state."""
    found = [json.loads(path.read_text()) for path in study.glob("*/status.json")]
    return {status["state"]: status for status in found}


@pytest.mark.timeout(300)
def test_an_arm_that_fails_leaves_the_others_finished_and_is_shown_with_its_reason(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    """The sweep stands in an experiment file, so there is no ``-m``."""
    experiment = tmp_path / "mine" / "experiment" / "pair.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(EXPERIMENT)
    done = train("--config-dir", str(tmp_path / "mine"), "experiment=pair", *tiny_overrides, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert "1 of 2 arms failed" in done.stderr
    assert "Traceback" not in done.stderr
    study = tmp_path / "runs" / "pair"
    by_state = statuses(study)
    assert sorted(by_state) == ["failed", "finished"]
    assert by_state["finished"]["step"] == 2
    assert by_state["failed"]["error"]["type"] == "DataError"
    assert "template.max_length is 8" in by_state["failed"]["error"]["message"]
    assert by_state["failed"]["error"]["message"].splitlines()[0] in done.stderr
    arms = [yaml.safe_load(path.read_text())["template"]["max_length"] for path in study.glob("*/config.yaml")]
    assert sorted(arms) == [8, 2048]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "runs"]
    assert not (study / "multirun.yaml").exists()
    table = compare(study)
    assert "failed" in table
    assert "template.max_length is 8" in table


def test_an_impossible_arm_starts_nothing_and_writes_nothing(tmp_path: Path, tiny_overrides: list[str]) -> None:
    sweep = ("-m", "resampler=perceiver", "resampler.num_kv_heads=1,3")
    done = train(*sweep, *tiny_overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert "no arm was started, since 1 of 2 are invalid" in done.stderr
    assert "E-HEADS" in done.stderr
    assert "fix: set resampler.num_kv_heads" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def with_arm(arm: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    experiment = tmp_path / "mine" / "experiment" / "pair.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(ARMS.replace("ARM", arm))
    return train("--config-dir", str(tmp_path / "mine"), "experiment=pair", *arguments, cwd=tmp_path)


@pytest.mark.timeout(300)
def test_every_arm_is_run_with_every_swept_value_and_the_command_line_comes_last(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    one = ("train.steps=1", "hydra.sweeper.params={train.seed: 5}")
    done = with_arm("resampler=avg_pool resampler.side=2 train.steps=9", tmp_path, *tiny_overrides, *one)
    assert done.returncode == 0, done.stderr
    runs = [yaml.safe_load(path.read_text()) for path in (tmp_path / "runs" / "pair").glob("*/config.yaml")]
    made = sorted(tuple(run["choices"][group] for group in ("resampler", "connector")) for run in runs)
    assert made == [("avg_pool", "auto"), ("none", "linear")]
    assert [run["train"]["seed"] for run in runs] == [5, 5]
    assert {run["train"]["steps"] for run in runs} == {1}


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("resampler=perceiver resampler.num_kv_heads=3", ("2 of 4 are invalid", "E-HEADS")),
        ("resampler=perciever", ("resampler=perciever", "did you mean resampler=perceiver?")),
        ("resampler=perceiver,none", ("resampler=perceiver,none",)),
        ("resampler='perceiver", ("hydra.sweeper.arms",)),
        ("train.sede=3", ("did you mean train.seed?",)),
    ],
)
def test_an_arm_that_cannot_be_starts_nothing(
    tmp_path: Path, tiny_overrides: list[str], arm: str, expected: tuple[str, ...]
) -> None:
    done = with_arm(arm, tmp_path, *tiny_overrides)
    assert done.returncode == 2, done.stderr
    assert [words for words in expected if words not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.timeout(300)
def test_two_arms_at_a_time_end_as_they_do_alone_and_the_same_command_does_nothing_more(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    sweep = ("-m", "study.name=pair", "train.seed=0,1", "launcher.jobs=2")
    done = train(*sweep, *tiny_overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs: " in done.stderr
    assert "2 runs finished; python -m beni.compare" in done.stderr
    alone = train("study.name=alone", "train.seed=1", *tiny_overrides, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    losses = [losses_of(next((tmp_path / "runs").glob(f"{study}/*-s1-*"))) for study in ("pair", "alone")]
    assert losses[0] == losses[1] != []
    again = train(*sweep, *tiny_overrides, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs have finished before" in again.stderr
    assert "arm 1/2" not in again.stderr
    assert status("pair", tmp_path) == "2 runs: 2 finished"


def losses_of(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def status(study: str, cwd: Path) -> str:
    """The last line of ``beni.launch status``."""
    return run_module("beni.launch", "status", f"runs/{study}", cwd=cwd).stdout.splitlines()[-1]


@pytest.mark.timeout(300)
def test_a_run_has_a_copy_of_the_code_that_it_is_made_of(
    tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the packages that the user trusts as well; what is edited later is another copy."""
    monkeypatch.setenv("BENI_TRUSTED", "parts")
    package = tmp_path / "parts"
    package.mkdir()
    part = (
        "from beni.resampler.avg_pool import AvgPool\n\n\nclass Mine(AvgPool):\n"
        "    def __init__(self, tokens, *, side: int) -> None:\n        super().__init__(tokens, side=side)\n"
    )
    (package / "__init__.py").write_text(part)
    own = ("study.name=own", "resampler=avg_pool", "resampler._target_=parts.Mine")
    done = train("-m", *own, "train.seed=0,1", *tiny_overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [code] = (tmp_path / "runs" / "own" / ".code").iterdir()
    assert (code / "parts" / "__init__.py").read_text() == part
    identities = [json.loads(p.read_text()) for p in (tmp_path / "runs" / "own").glob("*/identity.json")]
    assert {one["code"] for one in identities} == {code.name}
