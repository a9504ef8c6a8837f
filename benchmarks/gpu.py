"""SigLIP-so400m and TinyLlama at full size, random weights, on a GPU: samples a second, utilisation, parity of losses.

Without a GPU it says so and ends. ``--tiny`` runs everything on a small model, on any device, to try the program out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from beni.measure.peak import find_peak
from harness import llava, write_result

REAL = (
    *("vision=siglip", "vision.weights=random", "connector=mlp2x_gelu", "llm=tinyllama", "llm.weights=random"),
    "llm.tokenizer=embedded",
)
TINY = (
    *("connector=mlp2x_gelu", "vision.architecture.hidden_size=32", "vision.architecture.num_hidden_layers=2"),
    *("vision.architecture.image_size=24", "vision.architecture.patch_size=12", "vision.image_size=24"),
    *("llm.architecture.hidden_size=32", "llm.architecture.num_hidden_layers=2"),
)
MODES = {
    "align": ("train.plan.vision=frozen", "train.plan.llm=frozen"),
    "LoRA": ("train.plan.vision=frozen", "train.plan.llm=lora", "adapter=lora"),
    "full finetune": ("train.plan.vision=frozen", "train.plan.llm=full"),
}
FAST = ("compute.precision=bf16",)
PARITY = {
    "fp32, padded, eager attention": (
        "compute.precision=fp32",
        "compute.layout=padded",
        "llm.attn_implementation=eager",
    ),
    "fp32, packed": ("compute.precision=fp32",),
    "bf16, packed": FAST,
    "bf16, packed, compiled": (*FAST, "compute.compile=true"),
    "bf16, packed, layers computed again": (*FAST, "compute.activation_checkpointing=full"),
    "bf16, packed, loss in pieces": (*FAST, "compute.loss=chunked"),
}
WORKERS = len(os.sched_getaffinity(0))
PARTS = ("products", "attention", "other", "copy", "data", "idle")
EVERY = 4
"""Steps between two log lines: a line costs a GPU some waiting."""
WARMUP = 8
"""Steps that are not counted: allocation, autotuning, compilation."""
STEPS = 8
"""Steps over which losses are compared."""


@dataclass
class Bench:
    """Runs of ``python -m beni.train`` on one set of conversations, each in a process of its own."""

    folder: Path
    parts: tuple[str, ...]
    records: Path

    def run(self, steps: int, *overrides: str) -> list[dict[str, Any]]:
        """What the run logged, step by step; with the profile of its last step, where ``overrides`` ask for one."""
        runs = Path(tempfile.mkdtemp(dir=self.folder))
        command = [
            *(sys.executable, "-m", "beni.train", *self.parts, f"paths.runs={runs}", f"train.steps={steps}"),
            *("data=llava_instruct", f"data.path={self.records}", "data.heldout=2"),
            *("eval.every=0", "eval.examples=2", "eval.gallery=0", "checkpoint.every=0", "checkpoint.export=false"),
            *("optim.lr=1e-4", "optim.warmup_ratio=0", f"compute.workers={min(4, WORKERS)}", *overrides),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (file,) = runs.glob("**/metrics.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [line for line in lines if "train/loss" in line]
        for shares in runs.glob("**/profile/shares.json"):
            lines[-1]["profile"] = json.loads(shares.read_text())["shares"]
        return lines


def middle(lines: list[dict[str, Any]], name: str) -> float:
    """Median over the log lines after the warm-up and before the step that is profiled."""
    return median(line[f"train/{name}"] for line in lines[:-1] if line["step"] > WARMUP)


def compare_losses(bench: Bench, batch_size: int) -> dict[str, list[float]]:
    """Losses of the first steps of full finetuning, computed in every way of ``PARITY``; nothing is timed."""
    few = (*MODES["full finetune"], f"train.batch_size={batch_size}", "log.every=1")

    def losses(how: str) -> list[float]:
        found = [line["train/loss"] for line in bench.run(STEPS, *few, *PARITY[how])]
        print(how, found, flush=True)
        return found

    with ThreadPoolExecutor(2) as together:  # in fp32 one takes 41 GiB
        return dict(zip(PARITY, together.map(losses, PARITY), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=24, help=f"the first {WARMUP} and the last {EVERY} are not timed")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--words", type=int, default=130, help="of a question; the answer has half as many")
    parser.add_argument("--compile", action="store_true", help="compile layers in the speed runs")
    parser.add_argument("--tiny", action="store_true", help="a small model, on any device")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("benchmarks/gpu.py: no GPU here, nothing was measured (--tiny tries the program out)")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = find_peak(device, "bf16", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = 24 if options.tiny else 384
        records = llava.write_set(folder / "set", options.batch_size * 4, words=options.words, size=size)
        bench = Bench(folder, TINY if options.tiny else REAL, records)
        losses = compare_losses(bench, min(4, options.batch_size))
        batch = (
            f"log.every={EVERY}",
            *(f"train.batch_size={options.batch_size}", f"train.accumulation={options.accumulation}", *FAST),
            *(f"compute.compile={str(options.compile).lower()}", f"log.profile={options.steps}"),
        )
        seen = {}
        for mode, plan in MODES.items():
            seen[mode] = bench.run(options.steps, *plan, *batch)
            print(mode, seen[mode][-2:], flush=True)
    rows, values = [], {}
    for mode, lines in seen.items():
        rate, share = middle(lines, "samples_per_s"), middle(lines, "mfu")
        reached = middle(lines, "tflops_per_s") * 1e12 / peak.measured
        profile = lines[-1]["profile"]
        values[mode] = {"samples_per_s": rate, "mfu": share, "of_measured_peak": reached, "profile": profile}
        values[mode] |= {"hfu": middle(lines, "hfu"), "tokens_per_s": middle(lines, "tokens_per_s")}
        memory = max(value for line in lines for key, value in line.items() if key.startswith("train/memory/"))
        spent = (f"{profile[part]:.0%}" for part in PARTS)
        rows.append((mode, f"{rate:.1f}", f"{share:.1%}", f"{reached:.1%}", f"{memory:.1f}", *spent))
    tokens = values["align"]["tokens_per_s"] / values["align"]["samples_per_s"]
    first, *others = losses.items()
    apart = {how: [abs(a / b - 1) for a, b in zip(some, first[1], strict=True)] for how, some in others}
    write_result(
        "gpu_tiny" if options.tiny else "gpu",
        "Training at full size on one device; utilisation counts what the task needs, nothing computed again.",
        ("", "samples/s", "MFU", "of the measured peak", "peak GiB", *PARTS),
        rows,
        [
            peak.describe(),
            f"{options.batch_size} samples of {tokens:.0f} tokens a step, micro-batches: {options.accumulation}, bf16, "
            f"{'compiled layers' if options.compile else 'no compilation'}; "
            f"medians of windows of {EVERY} steps, {options.steps - WARMUP - EVERY} steps in all",
            "the last columns say what a profiled step's time went into",
            f"parity: full finetune, {len(first[1])} steps of {min(4, options.batch_size)} samples",
            *(
                f"{how}: losses differ from {first[0]} by {off[0]:.0e} at first, at most {max(off):.0e}, relative"
                for how, off in apart.items()
            ),
        ],
        modes=values,
        loss_differences=apart,
        losses=losses,
    )


if __name__ == "__main__":
    main()
