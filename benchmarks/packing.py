"""What packing saves: fill and tokens/s of packs against padded rows, in random order and grouped by length.

A mixed set like an instruction set: text alone, and conversations about one to four pictures. A picture has 36 visual
tokens here, lengths of texts are log-normal. All arms train the same model on the same samples; only how they are
laid out differs.
"""

from __future__ import annotations

import argparse
import json
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
from harness import interleaved, write_result

CPU = torch.device("cpu")
CAPACITY = 8192
WORDS = ("red", "blue", "green", "circle", "square", "triangle", "left", "right", "top", "is", "there", "what", "the")
ARMS = {
    "padded, random order": ("schedule=samples", "compute.layout=padded"),
    "padded, grouped by length": ("schedule=by_length", "compute.layout=padded"),
    "packs of 8192": ("schedule=packs", f"schedule.tokens={CAPACITY}", "schedule.images=64", "train.batch_size=1"),
}


def write_set(folder: Path, count: int) -> Path:
    """Conversations with no to four pictures and 12 to 4000 words."""
    rng = np.random.default_rng(0)
    for i in range(16):
        PILImage.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    records = []
    for i in range(count):
        images = int(rng.integers(1, 5)) if rng.random() < 0.6 else 0
        words = int(np.clip(rng.lognormal(5.3, 0.9), 12, 4000))
        said = " ".join(rng.choice(WORDS, words))
        turns = [{"from": "human", "value": "<image>" * images + "what is there"}, {"from": "gpt", "value": said}]
        pictures = [f"{int(rng.integers(16))}.png" for _ in range(images)]
        records.append({"id": str(i), "image": pictures, "conversations": turns})
    (folder / "mixed.json").write_text(json.dumps(records))
    return folder / "mixed.json"


class Arm:
    """One way of laying out, with a model of its own."""

    def __init__(self, records: Path, rows: int, overrides: tuple[str, ...]) -> None:
        run = compose(
            [
                *("data=llava_instruct", f"data.path={records}", "data.heldout=1", "template.max_length=8192"),
                *("vision.architecture.patch_size=8", "resampler=none", "connector=mlp2x_gelu"),
                *(f"train.batch_size={rows}", *overrides),
            ]
        )
        train = run["train"]
        self.model = build(run)
        self.optimizer = build_optimizer(self.model, run["optim"])
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        source = build_part(run["data"], train["seed"])
        self.schedule = make_schedule(run, source, renderer, self.model.viewer)
        steps = Steps(source, renderer, self.model.viewer, self.schedule, 1, run["compute"]["layout"])
        self.batches: list[list[Any]] = []
        seen = 0
        while seen < len(source):  # an epoch; the last step may run into the next
            self.batches.append(steps[len(self.batches)])
            seen += sum(len(batch.ids) for batch in self.batches[-1])
        self.tokens = sum(batch.num_tokens for step in self.batches for batch in step)
        positions = sum(batch.input_ids.numel() for step in self.batches for batch in step)
        packed = run["schedule"]["unit"] == "pack"
        self.fill = self.tokens / (len(self.batches) * CAPACITY if packed else positions)
        set_modes(self.model, train["plan"])

    def epoch(self) -> None:
        """All batches once."""
        for step, batches in enumerate(self.batches):
            forward_backward(self.model, batches, step, CPU, "fp32")
            clip_and_update(self.model, self.optimizer, 1e-4, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=192, help="of the timed epoch (%(default)s)")
    parser.add_argument("--fill", type=int, default=20_000, help="samples whose fill is measured (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "timed").mkdir()
        timed_set, whole_set = write_set(folder / "timed", arguments.samples + 1), write_set(folder, arguments.fill + 1)
        rows_a_step = 16
        arms = {name: Arm(timed_set, rows_a_step, overrides) for name, overrides in ARMS.items()}
        timed = interleaved({name: arm.epoch for name, arm in arms.items()}, arguments.rounds)
        run = compose(
            [
                *("data=llava_instruct", f"data.path={whole_set}", "data.heldout=1", "template.max_length=8192"),
                *("vision.architecture.patch_size=8", "schedule=packs", "compute.workers=2"),
            ]
        )
        model = build(run)
        source = build_part(run["data"], 0)
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        fill = make_schedule(run, source, renderer, model.viewer).fill()
    rate = {name: arms[name].tokens / timed[name].best for name in arms}
    base = rate["padded, random order"]
    write_result(
        "packing",
        f"Real tokens a second of one training epoch over {arguments.samples} mixed samples, {rows_a_step} rows or one "
        "pack a step.",
        ["layout", "fill", "tokens/s", "ratio"],
        [
            [
                name,
                f"{arm.fill:.3f}",
                f"{rate[name]:.0f} (+{timed[name].spread:.0%})",
                f"{rate[name] / base:.2f}x",
            ]
            for name, arm in arms.items()
        ],
        [
            f"fill of packs of {CAPACITY} tokens and 64 images over {arguments.fill} such samples: **{fill:.4f}** (the "
            "last packs of an epoch are what a short epoch loses by)",
            f"fp32, 1M parameters, best of {arguments.rounds} interleaved epochs, in brackets how much slower the "
            "slowest was; padding is not counted as tokens",
        ],
        fill=fill,
    )


if __name__ == "__main__":
    main()
