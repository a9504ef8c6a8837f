"""A run goes on only with the data and the frozen weights that it was begun with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from beni.config.compose import compose
from beni.errors import ResumeError
from beni.run import train


def cut(folder: Path) -> None:
    """As if the run had been killed after step 2 of 3."""
    shutil.rmtree(folder / "checkpoints" / "step_00000003")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))


@pytest.fixture
def run(tiny_values, tiny_model, tmp_path):
    """run(*overrides): of three steps, from the weights of another model in ``base``."""
    tiny_model("train.seed=7").save_pretrained(tmp_path / "base")
    values = ("train.steps=3", "checkpoint.every=1", "checkpoint.keep=9", "optim.lr=1e-2", "eval.examples=2")

    def make(*overrides):
        base = f"train.init_from={tmp_path / 'base'}"
        own = [value for value in tiny_values if "data=text" not in overrides or not value.startswith("data.")]
        return compose([*own, *values, f"paths.runs={tmp_path / 'runs'}", base, *overrides])

    return make


def test_frozen_weights_that_have_changed_are_refused(run, tiny_model, tmp_path):
    composed = run("adapter=lora", "train.plan.llm=lora")
    folder = train(composed)
    identity = (folder / "identity.json").read_text()
    cut(folder)
    tiny_model("train.seed=8").save_pretrained(tmp_path / "base")
    with pytest.raises(ResumeError, match=r"other data or weights:[^$]*weights\.llm: '[^$]*fix: restore them"):
        train(composed)
    assert (folder / "identity.json").read_text() == identity
    tiny_model("train.seed=7").save_pretrained(tmp_path / "base")
    train(composed)


def test_weights_that_a_checkpoint_replaces_may_change_and_are_told(run, tiny_model, tmp_path, capsys):
    composed = run("train.plan.llm=full", "train.plan.vision=full")
    folder = train(composed)
    cut(folder)
    tiny_model("train.seed=8").save_pretrained(tmp_path / "base")
    train(composed)
    assert "differ from those the run started with (weights.llm:" in " ".join(capsys.readouterr().err.split())


def test_a_text_that_has_changed_is_refused(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i * i} of a text.\n" for i in range(300)))
    settings = ("data=text", f"data.path={text}", "data.piece=32", "template=plain")
    settings += ("train.plan.connector=frozen", "train.plan.vision=frozen")
    composed = run(*settings)
    folder = train(composed)
    cut(folder)
    text.write_text(text.read_text().replace("Line", "Row"))
    with pytest.raises(ResumeError, match=r"other data or weights:\n  data\.fingerprint: [^$]*=changed_data to resume"):
        train(composed)


def test_a_run_goes_on_with_changed_data_where_that_is_asked_for_and_notes_it(run, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i * i} of a text.\n" for i in range(300)))
    settings = ("data=text", f"data.path={text}", "data.piece=32", "template=plain")
    settings += ("train.plan.connector=frozen", "train.plan.vision=frozen")
    folder = train(run(*settings))
    cut(folder)
    before = json.loads((folder / "identity.json").read_text())
    text.write_text(text.read_text().replace("Line", "Row"))
    assert train(run(*settings, "checkpoint.resume=changed_data")) == folder
    said = " ".join(capsys.readouterr().err.split())
    assert "resumes after step 2 with changed data (data.fingerprint: " in said
    after = json.loads((folder / "identity.json").read_text())
    (change,) = after["changed_data"]
    assert change["after_step"] == 2
    assert change["changes"][0] == f"data.fingerprint: {before['data_fingerprint']!r} -> {after['data_fingerprint']!r}"
    assert any(line.startswith("data.samples.training: ") for line in change["changes"])
    cut(folder)
    train(run(*settings))  # and from now on these are its data
    assert json.loads((folder / "identity.json").read_text())["changed_data"] == [change]


def test_changed_data_excuse_no_other_weights(run, tiny_model, tmp_path):
    folder = train(run("adapter=lora", "train.plan.llm=lora"))
    cut(folder)
    tiny_model("train.seed=8").save_pretrained(tmp_path / "base")
    with pytest.raises(ResumeError, match=r"weights\.llm: [^$]*fix: restore them, or set checkpoint\.resume=never"):
        train(run("adapter=lora", "train.plan.llm=lora", "checkpoint.resume=changed_data"))
