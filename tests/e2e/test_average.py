"""A run with averaged weights scores, exports and names the average, and its checkpoint keeps both."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from beni.run import train
from beni.training.checkpoint.files import read, steps


def test_what_is_exported_is_the_average_and_the_scores_say_so(tiny_run):
    run = tiny_run("train.ema=0.5", "train.steps=3", "optim.lr=1e-2", "checkpoint.export=true", "eval.examples=2")
    folder = train(run)
    saved = read(folder / "checkpoints", steps(folder / "checkpoints")[-1]).tensors
    exported = load_file(folder / "model" / "model.safetensors")
    averaged = {name.removeprefix("average/"): t for name, t in saved.items() if name.startswith("average/")}
    assert averaged
    for name, tensor in averaged.items():
        assert exported[name].equal(tensor), name
    assert any(not saved[f"model/{name}"].equal(tensor) for name, tensor in averaged.items())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval/ema"] for row in rows if "eval/loss" in row] == [0.5]
    assert "EMA weights (train.ema=0.5)" in (folder / "report.html").read_text()
