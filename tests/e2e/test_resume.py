"""Kill a run anywhere and start it again: the digits are those of a run that nobody touched."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.processes import run_module

STEPS = 24
OVERRIDES = (
    f"train.steps={STEPS}",
    "checkpoint.every=5",
    "compute.workers=1",
    "connector.dropout=0.1",
    "selector=gate_gumbel",
    "eval.examples=2",
    "data.heldout=2",
)


def arguments(overrides: list[str], runs: Path) -> list[str]:
    """Of ``python -m beni.train``."""
    kept = [o for o in overrides if not o.startswith(("paths.runs=", *(o.partition("=")[0] + "=" for o in OVERRIDES)))]
    return [*kept, *OVERRIDES, f"paths.runs={runs}"]


def only(runs: Path) -> Path:
    (folder,) = (path.parent for path in runs.glob("*/*/config.yaml"))
    return folder


def losses(runs: Path) -> list[tuple[int, str]]:
    """(step, the digits of the loss and of the gates' multiplier as they stand in the file), but for half a line."""
    rows, lines = [], (only(runs) / "metrics.jsonl").read_text().splitlines(keepends=True)
    for line in (line for line in lines if line.endswith("\n")):
        values = json.loads(line, parse_float=str)
        if "train/loss" in values:
            rows.append((values["step"], f"{values['train/loss']} {values['train/selector/multiplier']}"))
    return rows


def kill_after(process: subprocess.Popen[bytes], runs: Path, step: int) -> None:
    """SIGKILL to the process and its loader as soon as ``step`` has been logged."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        files = list(runs.glob("*/*/metrics.jsonl"))
        if files and f'{{"step": {step},' in files[0].read_text():
            break
        time.sleep(0.002)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_run_started_again_has_the_digits_of_an_uninterrupted_one(tiny_overrides, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run_module("beni.train", *arguments(tiny_overrides, whole))
    assert done.returncode == 0, done.stderr
    expected = losses(whole)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    assert len({digits for _, digits in expected}) == STEPS

    for step in sorted(random.Random(0).sample(range(1, STEPS - 4), 2)):
        process = subprocess.Popen(
            [sys.executable, "-m", "beni.train", *arguments(tiny_overrides, cut)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        kill_after(process, cut, step)
        assert json.loads((only(cut) / "status.json").read_text())["state"] == "running"
        assert losses(cut) == expected[: len(losses(cut))]
    done = run_module("beni.train", *arguments(tiny_overrides, cut))
    assert done.returncode == 0, done.stderr
    assert losses(cut) == expected
    for name in ("whole", "cut"):
        status = json.loads((only(tmp_path / name) / "status.json").read_text())
        assert (status["state"], status["step"], status["error"]) == ("finished", STEPS, None)


def test_a_failed_run_leaves_its_traceback_in_its_status(tiny_overrides, tmp_path):
    failing = ("data.text_share=1.0", "data.pictures_share=0", "train.plan.vision=frozen")
    done = run_module("beni.train", *arguments(tiny_overrides, tmp_path / "runs"), *failing)
    assert done.returncode == 2
    assert "no gradient reached selector" in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((only(tmp_path / "runs") / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"]["type"] == "TrainabilityError"
    assert "no gradient reached selector" in status["error"]["message"]
    assert status["error"]["traceback"].startswith("Traceback")


@pytest.mark.parametrize("kind", ["another key of the signature", "no key at all"])
def test_a_command_finds_its_own_run_folder_only(tiny_run, kind):
    from beni.runs.identity import run_folder

    ours = tiny_run()
    theirs = tiny_run("optim.lr=0.5") if kind.startswith("another") else tiny_run("log.every=7")
    assert (run_folder(ours) == run_folder(theirs)) == (kind == "no key at all")
