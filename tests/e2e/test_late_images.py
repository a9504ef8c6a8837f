"""Runs whose pictures lie on a hostile server: they end, ranks agree, good pictures are what they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.hostile import BAD, GOOD, HostileServer
from support.processes import run_module

pytestmark = pytest.mark.slow

QUICK_BAD = [name for name in BAD if name not in ("drip.jpg", "hang.jpg", "idle.jpg", "to_metadata.jpg")]
"""Without those that take a timeout (one stands for all) or leave this machine where private addresses are allowed."""


@pytest.fixture(scope="module")
def server():
    with HostileServer() as running:
        yield running


def write_set(folder: Path, server: HostileServer, count: int, bad: int) -> Path:
    """Records about ``count`` pictures, the last ``bad`` of them bad in every way."""
    names = [f"n{i}.png" for i in range(count - bad - len(GOOD))] + list(GOOD)
    names += [f"{([*QUICK_BAD, 'hang.jpg'])[i % (len(QUICK_BAD) + 1)]}?{i}" for i in range(bad)]
    records = []
    for i, name in enumerate(names):
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"number {i}"}]
        records.append({"id": name, "image": server.url(name), "conversations": turns})
    (folder / "urls.json").write_text(json.dumps(records))
    return folder / "urls.json"


@pytest.fixture
def command(tiny_values, tmp_path, server):
    """command(count, bad, *overrides) -> arguments of ``python -m beni.train``, its records on the server."""

    def make(count, bad, *overrides):
        kept = [value for value in tiny_values if not value.startswith("data.")]
        records = write_set(tmp_path, server, count, bad)
        images = {"timeout": 4.0, "idle_timeout": 3.0, "retries": 1, "max_mib": 2.0, "private_addresses": "true"}
        return [
            *(*kept, "data=llava_instruct", f"data.path={records}"),
            *("data.heldout=8", "template=chatml", "images.max_bad=0.5", f"images.cache={tmp_path}/cache"),
            *(f"images.{key}={value}" for key, value in images.items()),
            *(f"paths.runs={tmp_path}/runs", "compute.workers=2", *overrides),
        ]

    return make


def run(arguments, world=1):
    """On so many ranks."""
    return run_module("beni.train", *arguments, world=world, seconds=500)


def only(tmp_path: Path) -> Path:
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/*/status.json"))
    return folder


def rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_over_bad_pictures_ends_and_tells_each(command, tmp_path, world):
    """The loop ends a run whose ranks do not draw the same step."""
    done = run(command(120, 24, "train.steps=20", "train.batch_size=12", "log.every=5"), world)
    assert done.returncode == 0, done.stderr
    folder = only(tmp_path)
    errors = rows(folder / "data_errors.jsonl")
    names = {row["image"].partition("#")[0].rpartition("/")[2] for row in errors}
    held_out = 8
    assert len(names) >= len(QUICK_BAD) - held_out
    for row in errors:
        name = row["image"].partition("#")[0].rpartition("/")[2]
        assert row["reason"].rpartition(": ")[2] in BAD[name].split("|")
        assert row["action"] == "replaced"
        assert row["by"] != row["sample"]
        assert "urls.json" in row["where"]
    last = [row for row in rows(folder / "metrics.jsonl") if "data/samples" in row][-1]
    assert last["data/samples"] == 240
    assert last["data/bad"] == len(errors)
    assert len({(row["step"], row["sample"], row["image"], row["by"]) for row in errors}) == len(errors)


def test_a_second_epoch_asks_for_nothing(command, tmp_path, server):
    before = sum(server.requests.values())
    assert run(command(60, 0, "train.steps=4", "train.batch_size=13")).returncode == 0
    first = sum(server.requests.values()) - before
    again = command(60, 0, "train.steps=12", "train.batch_size=13")
    assert run(again).returncode == 0
    assert sum(server.requests.values()) - before - first == 0


def test_a_killed_run_replaces_alike_when_the_server_has_recovered(command, tmp_path, server):
    arguments = command(60, 12, "train.steps=24", "train.batch_size=8", "checkpoint.every=4", "log.every=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "beni.train", *arguments],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        found = list((tmp_path / "runs").glob("*/*/metrics.jsonl"))
        if found and any(row["step"] >= 10 for row in rows(found[0])):
            break
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = only(tmp_path)
    before = {row["step"]: row["train/loss"] for row in rows(folder / "metrics.jsonl") if "train/loss" in row}
    told = [row for row in rows(folder / "data_errors.jsonl") if row["step"] <= 8]
    verdicts = [row for file in (folder / "bad_images").iterdir() for row in rows(file)]
    assert verdicts
    server.recovered = True  # what was bad would now be good, and must not be used all the same
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    after = {row["step"]: row["train/loss"] for row in rows(folder / "metrics.jsonl") if "train/loss" in row}
    assert after.keys() == set(range(1, 25))
    assert all(after[step] == loss for step, loss in before.items())
    again = rows(folder / "data_errors.jsonl")
    assert again[: len(told)] == told
    server.recovered = False
