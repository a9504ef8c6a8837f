"""Training arms side by side: every round runs each arm in a process of its own, one after another."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beni.model.spec import propagate
from harness import Timed, llava

FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Arm:
    """What an arm's rounds gave.

    Attributes:
        timed: seconds of the steps that count.
        losses: of every step, of the first round.
        order: samples by step.
        peak_gib: most memory of any round.
    """

    timed: Timed
    losses: list[float]
    order: list[list[int]]
    peak_gib: float
    trained: int

    def rate(self, samples: int) -> float:
        """Samples a second of the best round."""
        return samples / self.timed.best


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Options that all training benchmarks share."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, the first of which is not timed")
    parser.add_argument("--batch-size", type=int, default=8, help="samples of a step (%(default)s)")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--threads", type=int, default=2)
    return parser


class Comparison:
    """Arms on the same conversations, of which beni's schedule draws those of each step."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.samples = options.batch_size * (options.steps - 1)
        records = llava.write_set(folder, options.batch_size * options.steps * 2)
        self.run = llava.run_of(records, options.batch_size, options.steps, options.precision)
        self.drawn = llava.Samples(self.run, propagate(self.run).viewer)
        self.order = self.drawn.order(options.steps)

    def about(self) -> dict[str, float]:
        """Mean length, padding of the rows as drawn, share of tokens that are labels."""
        encoded = [[self.drawn.encoded(index) for index in step] for step in self.order]
        lengths = [[len(sample["input_ids"]) for sample in step] for step in encoded]
        real, cells = sum(map(sum, lengths)), sum(max(step) * len(step) for step in lengths)
        labels = sum(int((sample["labels"] != llava.IGNORE).sum()) for step in encoded for sample in step)
        return {"mean_length": real / sum(map(len, lengths)), "padding": 1 - real / cells, "labels": labels / real}

    def arms(self, arms: Sequence[str], rounds: int, order: list[list[int]] | None = None) -> dict[str, Arm]:
        """Runs every arm once a round, in turn, on the samples of ``order``."""
        seen: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm in arms:
                seen[arm].append(self._once(arm, self.order if order is None else order))
                print(f"{arm}: {self.samples / seen[arm][-1]['seconds']:.2f} samples/s", file=sys.stderr)
        return {arm: self._arm(arm, results) for arm, results in seen.items()}

    def _once(self, arm: str, order: list[list[int]]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            settings, result = Path(name) / "settings.json", Path(name) / "result.json"
            values = {"run": self.run, "order": order, "threads": self.options.threads, "folder": name, "warmup": 1}
            settings.write_text(json.dumps(values))
            command = [sys.executable, "-m", "harness.arms", arm, str(settings), str(result)]
            subprocess.run(command, cwd=FOLDER, check=True, stdout=subprocess.DEVNULL)
            return json.loads(result.read_text())

    def _arm(self, name: str, results: list[dict[str, Any]]) -> Arm:
        first, size = results[0], self.options.batch_size
        return Arm(
            timed=Timed(name, tuple(result["seconds"] for result in results)),
            losses=first["losses"],
            order=[first["order"][size * step : size * (step + 1)] for step in range(self.options.steps)],
            peak_gib=max(result["peak_gib"] for result in results),
            trained=first["trained"],
        )


def loss_difference(one: Arm, other: Arm) -> float:
    """Largest relative difference of the losses of any step."""
    return max(abs(a / b - 1) for a, b in zip(one.losses, other.losses, strict=True))


def row(name: str, arm: Arm, samples: int, base: Arm, difference: str) -> list[str]:
    """A line of the table: samples/s with spread, ratio to ``base``, memory, difference of the losses."""
    return [
        name,
        f"{arm.rate(samples):.2f} (-{1 - 1 / (1 + arm.timed.spread):.0%})",
        f"{arm.rate(samples) / base.rate(samples):.2f}x",
        f"{arm.peak_gib:.1f}",
        difference,
    ]


COLUMNS = ("", "samples/s", "ratio", "peak GiB", "loss differs by")


def notes(about: Mapping[str, float], comparison: Comparison, arm: Arm) -> list[str]:
    """What a reader must know beside the table."""
    options = comparison.options
    return [
        f"CLIP ViT-B/32 (frozen), two-layer projector and SmolLM2-135M, {arm.trained / 1e6:.0f}M parameters trained, "
        f"random weights, equal in all arms; {options.precision}, AdamW, {options.threads} threads, "
        f"{options.batch_size} samples a step",
        f"mean sample {about['mean_length']:.0f} tokens (49 of them visual), {about['labels']:.0%} of the tokens are "
        f"labels, {about['padding']:.0%} of a padded batch is padding",
        f"best of {options.rounds} interleaved rounds of {options.steps - 1} steps after one that is not timed, in "
        "brackets how much slower the slowest was; a process each",
        "beni decodes and renders its samples while it trains; the others are given ready tensors",
    ]
