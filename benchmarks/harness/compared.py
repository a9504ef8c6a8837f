"""Training arms side by side: every round runs each arm in a process of its own, one after another."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from beni.model.costing.table import propagate
from harness import Timed, interleaved, llava

FOLDER = Path(__file__).resolve().parents[1]
DTYPES, NAMES = (torch.bfloat16, torch.float32), ("bf16", "fp32")


@dataclass(frozen=True)
class Arm:
    """What an arm's rounds gave.

    Attributes:
        timed: seconds of the steps that count.
        losses: of every step, of the first round.
        peak_gib: most memory of any round.
    """

    timed: Timed
    losses: list[float]
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
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="auto: the faster here")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def faster_precision(threads: int) -> str:
    """bf16 where this CPU multiplies matrices faster in it, else fp32."""
    torch.set_num_threads(threads)
    pairs = {dtype: (torch.randn(1024, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)) for dtype in DTYPES}
    took = interleaved({name: lambda a=a, b=b: a @ b for (a, b), name in zip(pairs.values(), NAMES, strict=True)}, 10)
    return min(took, key=lambda name: took[name].best)


class Comparison:
    """Arms on the same conversations, of which beni's schedule draws those of each step.

    The longest step comes first and is not timed, so that no later one meets memory that was never used (as
    transformers' grouping does).

    Args:
        images, words: of each conversation (``llava.write_set``).
    """

    def __init__(self, folder: Path, options: argparse.Namespace, images: int = 1, words: int | None = None) -> None:
        if options.precision == "auto":
            options.precision = faster_precision(options.threads)
        self.folder, self.options = folder, options
        self.samples = options.batch_size * (options.steps - 1)
        records = llava.write_set(folder, options.batch_size * options.steps * 2, images, words)
        self.run = llava.run_of(records, options.batch_size, options.steps, options.precision)
        self.drawn = llava.Samples(self.run, propagate(self.run).viewer)
        self.order = sorted(self.drawn.order(options.steps), key=self._length, reverse=True)

    def _length(self, step: Sequence[int]) -> int:
        return sum(len(self.drawn.encoded(index)["input_ids"]) for index in step)

    def longer_half(self) -> float:
        """Share of the timed steps' tokens that the slower of two processes has, each taking every second sample."""
        steps = self.order[1:]
        return sum(max(map(self._length, (step[::2], step[1::2]))) for step in steps) / sum(map(self._length, steps))

    def grouped(self) -> list[list[int]]:
        """The samples that are timed, in batches of like length: what a length-grouping sampler makes at its best."""
        first, *timed = self.order
        size = self.options.batch_size
        indices = sorted((i for step in timed for i in step), key=lambda i: self._length([i]), reverse=True)
        return [first, *(indices[start : start + size] for start in range(0, len(indices), size))]

    def about(self, order: Sequence[Sequence[int]] | None = None) -> dict[str, float]:
        """Mean length, padding of the rows as drawn (or in ``order``), share of tokens that are labels; timed steps."""
        encoded = [[self.drawn.encoded(index) for index in step] for step in (order or self.order)[1:]]
        lengths = [[len(sample["input_ids"]) for sample in step] for step in encoded]
        real, cells = sum(map(sum, lengths)), sum(max(step) * len(step) for step in lengths)
        labels = sum(int((sample["labels"] != llava.IGNORE).sum()) for step in encoded for sample in step)
        return {"mean_length": real / sum(map(len, lengths)), "padding": 1 - real / cells, "labels": labels / real}

    def arms(self, chosen: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, Arm]:
        """Runs every arm once a round, in turn.

        Args:
            chosen: the settings of each: ``program`` (an arm of harness/arms.py), ``overrides`` of the run, features to
                do ``without``, ``world`` (processes, which share the threads), ``arguments`` of another trainer,
                samples by step in another ``order``.
        """
        seen: dict[str, list[dict[str, Any]]] = {arm: [] for arm in chosen}
        for _ in range(rounds):
            for arm, settings in chosen.items():
                seen[arm].append(self._once(**settings))
                print(f"{arm}: {self.samples / seen[arm][-1]['seconds']:.2f} samples/s", file=sys.stderr)
        return {arm: self._arm(arm, results) for arm, results in seen.items()}

    def _once(
        self,
        program: str = "beni",
        overrides: Sequence[str] = (),
        without: Sequence[str] = (),
        world: int = 1,
        arguments: Mapping[str, Any] | None = None,
        order: list[list[int]] | None = None,
    ) -> dict[str, Any]:
        run = self.run
        if overrides:
            records, options = Path(run["data"]["path"]), self.options
            run = llava.run_of(records, options.batch_size, options.steps, options.precision, *overrides)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            settings, result = Path(name) / "settings.json", Path(name) / "result.json"
            values = {"run": run, "order": order or self.order, "threads": self.options.threads // world}
            values |= {"folder": name, "warmup": 1, "without": list(without), "arguments": dict(arguments or {})}
            settings.write_text(json.dumps(values))
            command = [sys.executable, "-m", "harness.arms", program, str(settings), str(result)]
            ranks = [
                subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.DEVNULL, env=os.environ | variables)
                for variables in _rank_variables(world)
            ]
            if codes := [code for code in [rank.wait() for rank in ranks] if code]:
                raise SystemExit(f"{program} {' '.join(overrides)} ended with exit code {codes[0]}")
            return json.loads(result.read_text())

    def _arm(self, name: str, results: list[dict[str, Any]]) -> Arm:
        first = results[0]
        return Arm(
            timed=Timed(name, tuple(result["seconds"] for result in results)),
            losses=first["losses"],
            peak_gib=max(result["peak_gib"] for result in results),
            trained=first["trained"],
        )


def _rank_variables(world: int) -> list[dict[str, str]]:
    """Environment variables of each of so many processes."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


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


OURS: dict[str, dict[str, Any]] = {"beni": {}, "compiled": {"overrides": ("compute.compile=true",)}}
"""beni's arms beside another trainer: as it comes, and with its layers compiled."""

RECOMPILED = "compiled layers are compiled again when they meet a second length, which is timed here"

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
        f"best of {options.rounds} interleaved rounds of {options.steps - 1} steps after the longest, which is not "
        "timed, in brackets how much slower the slowest was; a process each",
        "beni decodes and renders its samples while it trains; the others are given ready tensors",
    ]
