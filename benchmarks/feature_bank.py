"""What a feature bank saves: a training step with the frozen encoder in it, and with its features from the bank.

CLIP ViT-B/32 and ViT-L/14 at 224 pixels (random weights; their cost does not depend on them), a perceiver that trains,
and a small llm. Both sides take the same batches and have the same weights, and the losses are compared bit for bit.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from beni import compose
from beni.assemble import make_schedule
from beni.config.build import build as build_part
from beni.data.batch.loader import Steps
from beni.data.render.template import Renderer
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward
from beni.training.trainable import set_modes
from beni.vision.feature_bank import FeatureBank, describe
from harness import interleaved, write_result

CPU = torch.device("cpu")


def write_pictures(folder: Path, count: int) -> Path:
    """A LLaVA file about noise pictures of 224 pixels."""
    import json

    records = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(folder / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"picture number {i}"}]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json"


class Arm:
    """One side: a model, its optimizer, and an epoch of micro-batches."""

    def __init__(self, run: dict[str, Any], bank: Path | None, precision: str) -> None:
        train = run["train"]
        self.model, self.precision = build(run), precision
        self.optimizer = build_optimizer(self.model, run["optim"])
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        source = build_part(run["data"], train["seed"])
        schedule = make_schedule(run, source, renderer, self.model.viewer)
        steps = Steps(source, renderer, self.model.viewer, schedule, 1, "packed", pixel_keys=bank is not None)
        self.batches = [steps[step] for step in range(len(source) // train["batch_size"])]
        set_modes(self.model, train["plan"])
        if bank is not None:
            description = describe(self.model.vision, run["vision"], precision)
            self.model.feature_bank = FeatureBank(bank, description, print)
        self.losses: list[float] = []

    def epoch(self) -> None:
        """All batches once; the same every time but for the weights."""
        for step, batches in enumerate(self.batches):
            loss = float(forward_backward(self.model, batches, step, CPU, self.precision).loss)
            clip_and_update(self.model, self.optimizer, 1e-4, 1.0)
            self.losses.append(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = write_pictures(folder, arguments.pictures + 1)
        for vision in ("clip_b32", "clip_224"):
            run = compose(
                [
                    *(f"vision={vision}", "vision.weights=random", "resampler=perceiver", "resampler.num_latents=32"),
                    *("data=llava_pretrain", f"data.path={records}", "data.heldout=1", "train.batch_size=8"),
                ]
            )
            plain, banked = Arm(run, None, "fp32"), Arm(run, folder / "bank", "fp32")
            timed = interleaved({"encoder": plain.epoch, "bank": banked.epoch}, arguments.rounds)
            assert plain.losses == banked.losses, "the bank changed a loss"
            bank = banked.model.feature_bank
            assert bank is not None
            assert bank.encoded == arguments.pictures, "a later epoch called the encoder"
            steps = len(plain.batches)
            before, after = timed["encoder"], timed["bank"]
            rows.append(
                [
                    vision,
                    f"{1000 * before.best / steps:.0f} ms (+{before.spread:.0%})",
                    f"{1000 * after.best / steps:.0f} ms (+{after.spread:.0%})",
                    f"{before.best / after.best:.1f}x",
                    "equal bits",
                ]
            )
            bank.close()
    write_result(
        "feature_bank",
        "A training step on 8 pictures with a frozen encoder, and with its features from the bank (later epochs).",
        ["vision encoder", "step with the encoder", "step with the bank", "ratio", "losses"],
        rows,
        [
            f"fp32, perceiver with 32 latents trained, small llm trained, {arguments.pictures} pictures, best of "
            f"{arguments.rounds} interleaved epochs, in brackets how much slower the slowest was",
            "in its first epoch the bank encodes every picture and writes it; after that it never calls the encoder",
        ],
    )


if __name__ == "__main__":
    main()
