"""Sweeps as a user starts them: arms that fail leave the others alone, and nothing starts when one is impossible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from support.processes import run_module

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_submitit_runs_the_same_path_without_a_cluster(tmp_path: Path, tiny_overrides: list[str]) -> None:
    sweep = ("-m", "launcher=submitit_local", "study.name=jobs", "optim.lr=1e-4,1e38")
    done = train(*sweep, *tiny_overrides, "train.steps=3", cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert "1 of 2 arms failed" in done.stderr
    study = tmp_path / "runs" / "jobs"
    by_state = statuses(study)
    assert sorted(by_state) == ["failed", "finished"]
    assert by_state["finished"]["step"] == 3
    assert "lower optim.lr" in by_state["failed"]["error"]["message"]
    assert by_state["failed"]["error"]["type"] == "DivergenceError"
    assert list((study / ".submitit").rglob("*_log.out")), "each job has its log below the study"
    assert "lower optim.lr" in compare(study)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_is_asked_to_end_is_queued_again_and_goes_on(tmp_path: Path, tiny_overrides: list[str]) -> None:
    """As SLURM does with ``--signal``: submitit listens to SIGUSR2, once the run has saved what it has."""
    values = [value for value in tiny_overrides if not value.startswith("train.steps=")]
    sweep = ["-m", "launcher=submitit_local", "study.name=jobs", "train.steps=300", "checkpoint.every=1000"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "beni.train", *sweep, *values],
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    study = tmp_path / "runs" / "jobs"

    def metrics() -> str:
        return "".join(path.read_text() for path in study.glob("*/metrics.jsonl"))

    while '{"step": 20,' not in metrics():
        assert process.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.02)
    job = next(p for p in psutil.Process(process.pid).children(True) if "submitit.core._submit" in p.cmdline())
    job.send_signal(signal.SIGUSR2)
    assert process.wait() == 0, (tmp_path / "said").read_text()
    steps = [row["step"] for row in map(json.loads, metrics().splitlines()) if "train/loss" in row]
    assert steps == list(range(1, 301))  # none is taken twice: it went on where it had been asked to end
    assert statuses(study)["finished"]["step"] == 300
    logs = "".join(path.read_text() for path in study.glob(".submitit/*/*_log.*"))
    assert logs.count("resumed after step") == 1
