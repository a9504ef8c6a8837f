"""A frozen encoder's features are computed once: later epochs and runs take them from the bank, digit for digit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as PILImage

from beni.run import train
from beni.vision.hf import HFVision

PICTURES, BATCH = 12, 4
NEW = 4
"""Pictures that ablations make: two held-out ones shuffled, and noise in the place of both."""
SETTINGS = (
    *("data=llava_pretrain", "template=chat", "train.plan.vision=frozen", f"train.batch_size={BATCH}"),
    *("data.heldout=2", "train.steps=10", "compute.workers=0", "eval.examples=2", "connector.dropout=0.1"),
)


@pytest.fixture
def pictures(tmp_path):
    """A LLaVA file about ten pictures to train on and two held out."""
    records = []
    for i in range(PICTURES):
        noise = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"number {i}"}]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (tmp_path / "records.json").write_text(json.dumps(records))
    return str(tmp_path / "records.json")


@pytest.fixture
def run_once(tiny_values, pictures, tmp_path, monkeypatch):
    """run_once(name, overrides) -> (logged lines with losses, status, views that passed the encoder)."""
    from beni.config.compose import compose

    seen = []
    forward = HFVision.forward

    def counted(self, pixels, *keep):
        if not pixels.is_meta:
            seen.append(len(pixels))
        return forward(self, pixels, *keep)

    monkeypatch.setattr(HFVision, "forward", counted)
    plain = [value for value in tiny_values if not value.startswith("data.")]

    def start(name, *overrides):
        seen.clear()
        run = compose([*plain, *SETTINGS, f"data.path={pictures}", f"paths.runs={tmp_path / name}", *overrides])
        folder = train(run)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return lines, json.loads((folder / "status.json").read_text()), sum(seen)

    return start


def digits(lines):
    return [{k: v for k, v in line.items() if "loss" in k or "norm" in k or "accuracy" in k} for line in lines]


def test_a_second_epoch_and_a_second_run_never_call_the_encoder(run_once, tmp_path):
    bank = f"compute.feature_bank={tmp_path / 'bank'}"
    bare, _, all_views = run_once("bare")
    first, status, encoded = run_once("first", bank)
    assert digits(first) == digits(bare)
    # training, held out and with half of the tokens dropped, swapped, one blank picture for all blanks, new pictures
    assert all_views == 10 * BATCH + 2 + 2 + 2 + 1 + NEW
    # an epoch of ten samples ends in the third step: from then on every view is known
    hits = [line["train/feature_bank_hits"] for line in first if "train/feature_bank_hits" in line]
    assert hits[3:] == [1.0] * 7
    assert encoded <= 3 * BATCH + 2 + 1 + NEW
    assert status["feature_bank"]["encoded"] == encoded

    second, status, encoded = run_once("second", bank)
    assert digits(second) == digits(bare)
    assert encoded == 0
    assert status["feature_bank"]["misses"] == 0

    other, _, encoded = run_once("other", bank, "resampler=avg_pool", "resampler.side=1")
    assert encoded == 0  # another arm of a study shares it
    assert digits(other) != digits(bare)
