"""A checkpoint is complete or absent, whatever moment a run dies at, and a full disk costs one checkpoint only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors import SafetensorError

from beni.distributed.collectives import Peers
from beni.training.checkpoint import files as checkpoint
from beni.training.checkpoint import shards
from beni.training.checkpoint.best import BestCheckpoint
from beni.training.checkpoint.files import Checkpoints
from support.checkpoint_log import Log

SHARD = "shard-00001-of-00001.safetensors"


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after it runs."""


def checkpoints_of(root, keep, metric=None, log=None):
    peers = Peers()
    return Checkpoints(root, peers, keep, BestCheckpoint(root, metric, peers, log or Log()))


def save(root, step, keep=2):
    checkpoints = checkpoints_of(root, keep)
    checkpoints.save(step, {"x": torch.full((3,), float(step)), "n": torch.tensor(step)}, {"signature": "s"})
    return checkpoints.wait()


def newest(root):
    skipped = []
    found = checkpoints_of(root, 2).newest(skipped)
    return found, skipped


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_what_was_saved_is_found(tmp_path):
    outcome = save(tmp_path, 4)
    assert (outcome.step, outcome.problem) == (4, None)
    found, skipped = newest(tmp_path)
    assert (found.step, found.values["signature"], skipped) == (4, "s", [])
    assert found.tensors["x"].tolist() == [4.0] * 3
    assert found.tensors["n"].item() == 4


def test_without_checkpoints_nothing_is_found(tmp_path):
    assert newest(tmp_path / "none") == (None, [])


def test_training_may_change_a_tensor_as_soon_as_saving_has_begun(tmp_path, monkeypatch):
    checkpoints, tensor, changed, write = checkpoints_of(tmp_path, 2), torch.zeros(3), Event(), shards.write

    def late(*args):
        assert changed.wait(30)
        write(*args)

    monkeypatch.setattr(shards, "write", late)
    checkpoints.save(1, {"x": tensor}, {})
    assert checkpoints.writing
    assert not checkpoints.settled
    tensor.fill_(1)
    changed.set()
    assert checkpoints.wait().problem is None
    assert newest(tmp_path)[0].tensors["x"].tolist() == [0.0] * 3


STAGES = [
    (shards, "save_file", 1),
    (Path, "write_text", 1),
    (Path, "write_text", 2),
    (checkpoint, "_checksum", 1),
    (checkpoint, "_checksum", 2),
    *((checkpoint, "_flush", n) for n in (1, 2, 3, 4, 5)),
    (os, "replace", 1),
]


def dies(monkeypatch, owner, name, call, error):
    original, calls = getattr(owner, name), []

    def at_last(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, at_last)


@pytest.mark.parametrize(("owner", "name", "call"), STAGES, ids=[f"{n}-{i}" for _, n, i in STAGES])
def test_a_run_killed_while_saving_has_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, owner, name, call):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        dies(patch, owner, name, call, Killed())
        with pytest.raises(Killed):
            save(tmp_path, 2)
    found, skipped = newest(tmp_path)
    # once renamed it counts; only flushing the folder above comes after that
    assert found.step == (2 if (name, call) == ("_flush", 5) else 1)
    assert found.tensors["x"].tolist() == [float(found.step)] * 3
    assert skipped == []
    assert not list(tmp_path.glob(".partial_*"))
    save(tmp_path, 2)
    assert newest(tmp_path)[0].step == 2


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("owner", "name", "call"), STAGES[:-3], ids=[f"{n}-{i}" for _, n, i in STAGES[:-3]])
def test_a_full_disk_costs_the_checkpoint_and_nothing_else(tmp_path, monkeypatch, owner, name, call):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        error = SafetensorError("I/O error: No space left on device") if name == "save_file" else FULL
        dies(patch, owner, name, call, error)
        outcome = save(tmp_path, 2)
    assert "No space left on device" in outcome.problem
    assert names(tmp_path) == ["step_00000001"]
    assert save(tmp_path, 3).problem is None
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_run_killed_while_it_removes_an_old_checkpoint_has_the_new_one(tmp_path, monkeypatch, call):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        dies(patch, shutil, "rmtree", call, Killed())
        try:
            save(tmp_path, 3)
        except Killed:
            assert call <= 2
    found, skipped = newest(tmp_path)
    assert (found.step, skipped) == (3, [])
    assert not list(tmp_path.glob(".partial_*"))


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_00000003", "step_00000004"]


def test_checkpoints_that_must_stay_do_beside_the_newest(tmp_path, monkeypatch):
    checkpoints = checkpoints_of(tmp_path, 1)
    monkeypatch.setattr(checkpoints.best, "kept", lambda: {"step_00000002"})
    for step in (1, 2, 3, 4):
        checkpoints.save(step, {"x": torch.zeros(1)}, {})
        assert checkpoints.wait().problem is None
    assert names(tmp_path) == ["step_00000002", "step_00000004"]
    monkeypatch.setattr(checkpoints.best, "kept", set)
    checkpoints.discard_old()
    assert names(tmp_path) == ["step_00000004"]


DAMAGE = {
    "truncated tensors": lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-8]),
    "changed values": lambda f: (f / "state.json").write_text(json.dumps({"step": 2, "signature": "t"})),
    "no tensors": lambda f: (f / SHARD).unlink(),
    "no marker": lambda f: (f / "complete.json").unlink(),
    "broken marker": lambda f: (f / "complete.json").write_text('{"state.saf'),
    "another format": lambda f: (f / "complete.json").write_text(json.dumps({"state.safetensors": 3})),
    "marker with a list": lambda f: (f / "complete.json").write_text(json.dumps({"files": ["state.json"]})),
    "marker that is no text": lambda f: (f / "complete.json").write_bytes(b"\xff\xfe"),
    "marker of something else": lambda f: (f / "complete.json").write_text(json.dumps({"files": {"a.bin": 3}})),
}
REASONS = {
    "truncated tensors": f"{SHARD} does not have the checksum it was saved with",
    "changed values": "state.json does not have the checksum it was saved with",
    "no tensors": f"{SHARD} is missing",
    "no marker": "no completion marker",
    "broken marker": "complete.json is not complete JSON, or of another version of beni",
    "another format": "complete.json is damaged: files is missing, or of another version of beni",
    "marker with a list": "complete.json is damaged: files is ['state.json'], expected an object, "
    "or of another version of beni",
    "marker that is no text": "complete.json is not UTF-8, or of another version of beni",
    "marker of something else": "complete.json does not list state.json",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, kind):
    save(tmp_path, 1)
    save(tmp_path, 2)
    DAMAGE[kind](tmp_path / "step_00000002")
    found, skipped = newest(tmp_path)
    assert found.step == 1
    assert skipped == [f"step_00000002: {REASONS[kind]}"]


def test_a_folder_beside_the_checkpoints_is_none(tmp_path):
    save(tmp_path, 1)
    for name in ("step_abc", "step_00000001.old", "step_7"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path)[0].step == 1


def test_a_damaged_later_checkpoint_never_pushes_out_a_good_one(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 9)
    DAMAGE["truncated tensors"](tmp_path / "step_00000009")
    save(tmp_path, 5, keep=1)
    assert newest(tmp_path)[0].step == 5


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    save(tmp_path, 1)
    assert names(tmp_path / "step_00000001") == ["complete.json", SHARD, "state.json"]
    for path in (tmp_path / "step_00000001").glob("*.json"):
        json.loads(path.read_text())
