"""The main job in small: a model that is trained sees, and one that is blinded does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.processes import run_module


@pytest.mark.slow
def test_a_small_model_learns_the_colours_it_sees_and_not_those_it_cannot(tmp_path: Path):
    arguments = [
        *[f"paths.runs={tmp_path}", "study.name=learns"],
        *["train.steps=220", "train.batch_size=32", "compute.threads=1", "compute.workers=1", "data.heldout=400"],
        *["optim.warmup_ratio=0.1", "eval.gallery=4", "checkpoint.every=0"],
    ]
    done = run_module("beni.train", *arguments, seconds=600)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "learns").glob("tiny_vit-*")
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["eval/accuracy"] > status["eval/chance"] + 0.08
    assert abs(status["eval/accuracy_blank"] - status["eval/chance"]) < 0.1
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]

    def colours(variant: str) -> float:
        of = [row["score"] for row in scores if row["kind"] == "colour" and row["variant"] == variant]
        return sum(of) / len(of)

    assert colours("true") > 0.35  # one in six by chance
    assert all(colours(variant) < colours("true") - 0.1 for variant in ("blank", "swapped", "noise"))
    assert "</html>" in (folder / "report.html").read_text()
