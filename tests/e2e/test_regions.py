"""Runs that crop: what they record of a detector, and that they are the same with and without workers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from beni.errors import ResumeError
from beni.run import train
from beni.runs.folder import _proof
from beni.views.detector import Detector
from support.shrink import DETECTOR

LONG = ("template.max_length=2048", "llm.architecture.max_position_embeddings=2048")


@pytest.fixture
def cropping(tiny_run):
    """cropping("train.steps=1"): a run whose detector is that of a moment."""

    def make(*overrides):
        run = tiny_run("views=regions_detector", *LONG, *overrides)
        run["views"] |= DETECTOR
        return run

    return make


def test_a_run_records_the_weights_of_its_detector_tells_its_cost_and_draws_its_crops(cropping):
    run = cropping("eval.gallery=2")
    folder = train(run)
    identity = json.loads((folder / "identity.json").read_text())
    assert len(identity["views"]) == 16
    assert _proof(identity)["views"] == identity["views"]
    assert "FLOPs for each image in the loader" in (folder / "notices.jsonl").read_text()
    lines = [json.loads(line) for line in (folder / "gallery.jsonl").read_text().splitlines()]
    assert [line["drawings"][0]["note"] for line in lines] == ["2 crops"] * 2


def test_a_run_does_not_go_on_with_another_detector(cropping, monkeypatch):
    run = cropping("train.steps=2", "checkpoint.every=1", "checkpoint.keep=9")
    folder = train(run)
    shutil.rmtree(folder / "checkpoints" / "step_00000002")  # as if it had been killed before
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    monkeypatch.setattr(Detector, "fingerprint", lambda self: "another")
    with pytest.raises(ResumeError, match=r"views: '[0-9a-f]{16}' -> 'another'"):
        train(run)


def test_workers_crop_as_the_main_process_does(cropping, steps_of):
    from beni.data.batch.loader import load
    from beni.model.build import build

    run = cropping()
    model = build(run)
    steps = steps_of(run, model)
    batches = [next(iter(load(steps, 0, 1, workers, pin=False))) for workers in (0, 1)]
    for ours, theirs in zip(*batches, strict=True):
        assert [layout.boxes for layout in ours.layouts] == [layout.boxes for layout in theirs.layouts]
        assert torch.equal(ours.pixels, theirs.pixels)
