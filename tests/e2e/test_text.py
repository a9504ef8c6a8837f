"""A run without a picture learns to write, and no vision encoder computes."""

from __future__ import annotations

import json
from pathlib import Path

from beni.config.compose import compose
from beni.run import train
from beni.vision.hf import HFVision

ROOT = Path(__file__).parents[2]
VALUES = ("train.steps=60", "train.batch_size=32", "compute.threads=1", "compute.workers=0", "compute.device=cpu")
VALUES += ("llm.architecture.num_hidden_layers=2", "eval.examples=64", "checkpoint.every=0")


def test_tiny_shakespeare_in_short_learns_without_its_encoder(tmp_path, monkeypatch):
    pages = sorted((ROOT / "src" / "beni" / "resampler").glob("*.py"))
    text = tmp_path / "text.txt"
    words = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    text.write_text(words.replace("<", "["), encoding="utf-8")  # no special token by accident
    encode = HFVision.forward

    def forward(encoder, pixels, keep=None):
        assert pixels.is_meta, "the encoder is called with values, and not for a count alone"
        return encode(encoder, pixels, keep)

    monkeypatch.setattr(HFVision, "forward", forward)
    values = [*VALUES, f"data.path={text}", "data.url=null", "data.sha256=null", f"paths.runs={tmp_path}"]
    folder = train(compose(["experiment=tiny_shakespeare", *values]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(row["train/loss"] for row in rows if "train/loss" in row)
    held_out = next(row["eval/loss"] for row in rows if "eval/loss" in row)
    assert first > 5  # of 264 bytes none is likelier
    assert held_out < 3.1  # which letters are frequent gives 3.29 in this text
    status = json.loads((folder / "status.json").read_text())
    trained = {name: counts["trained"] for name, counts in status["parameters"].items()}
    assert [name for name, count in trained.items() if count] == ["llm"]
