"""A checkpoint is complete or absent, whatever moment a run dies at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from beni.training import checkpoint


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after it runs."""


def save(root, step, keep=2):
    checkpoint.save(root, step, {"x": torch.full((3,), float(step))}, {"signature": "s"}, keep)


def newest(root):
    skipped = []
    found = checkpoint.newest(root, skipped)
    return found, skipped


def test_what_was_saved_is_found(tmp_path):
    save(tmp_path, 4)
    found, skipped = newest(tmp_path)
    assert (found.step, found.values["signature"], skipped) == (4, "s", [])
    assert found.tensors["x"].tolist() == [4.0] * 3


def test_without_checkpoints_nothing_is_found(tmp_path):
    assert newest(tmp_path / "none") == (None, [])


STAGES = [
    (checkpoint, "save_file", 1),
    (Path, "write_text", 1),
    (Path, "write_text", 2),
    (checkpoint, "_checksum", 1),
    (checkpoint, "_checksum", 2),
    *((checkpoint, "_flush", n) for n in (1, 2, 3, 4, 5)),
    (checkpoint.shutil, "rmtree", 2),
    (os, "replace", 1),
]


@pytest.mark.parametrize(("owner", "name", "call"), STAGES, ids=[f"{n}-{i}" for _, n, i in STAGES])
def test_a_run_killed_while_saving_has_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, owner, name, call):
    save(tmp_path, 1)
    original, calls = getattr(owner, name), []

    def dies(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
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


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


DAMAGE = {
    "truncated tensors": lambda f: (f / "state.safetensors").write_bytes((f / "state.safetensors").read_bytes()[:-8]),
    "changed values": lambda f: (f / "state.json").write_text(json.dumps({"step": 2, "signature": "t"})),
    "no tensors": lambda f: (f / "state.safetensors").unlink(),
    "no marker": lambda f: (f / "complete.json").unlink(),
    "broken marker": lambda f: (f / "complete.json").write_text('{"state.saf'),
}
REASONS = {
    "truncated tensors": "state.safetensors does not have the checksum it was saved with",
    "changed values": "state.json does not have the checksum it was saved with",
    "no tensors": "state.safetensors is missing",
    "no marker": "no completion marker",
    "broken marker": "no completion marker",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, kind):
    save(tmp_path, 1)
    save(tmp_path, 2)
    DAMAGE[kind](tmp_path / "step_00000002")
    found, skipped = newest(tmp_path)
    assert found.step == 1
    assert skipped == [f"step_00000002: {REASONS[kind]}"]


def test_a_damaged_later_checkpoint_never_pushes_out_a_good_one(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 9)
    DAMAGE["truncated tensors"](tmp_path / "step_00000009")
    save(tmp_path, 5, keep=1)
    assert newest(tmp_path)[0].step == 5
