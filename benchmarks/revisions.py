"""Whether a change costs speed: this checkout and another one, run in turn on the same machine.

    git worktree add ../before REVISION
    python benchmarks/revisions.py --before ../before

Measured are the steps of the default run per second, the samples of the arm that benchmarks/vs_hf_trainer.py compares
per second, and the seconds in which every recipe is composed, built without weights and planned. Each measurement is a
process of its own; the two checkouts take turns, and medians are compared: of a shared machine the best round is luck.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import write_result

HERE = Path(__file__).resolve().parents[1]

TRAIN = """
import json, sys, tempfile
from pathlib import Path
from beni.config.compose import compose
from beni.paths import conf_dir
from beni.run import train
new = "\\ncompute:" in (conf_dir() / "train.yaml").read_text()
steps, every = int(sys.argv[1]), int(sys.argv[2])
values = {"threads": 1, "workers": 1, "device": "cpu"}
overrides = [f"{'compute' if new else 'train'}.{key}={value}" for key, value in values.items()]
overrides += [f"log.every={every}" if new else f"train.log_every={every}", f"train.steps={steps}"]
with tempfile.TemporaryDirectory() as runs:
    overrides += [f"paths.runs={runs}", "checkpoint.every=0", "checkpoint.export=false", "eval.examples=8"]
    folder = train(compose([*overrides, "eval.gallery=0", "data.heldout=8"]))
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
speeds = [row["train/samples_per_s"] / 32 for row in rows if "train/samples_per_s" in row and row["step"] > every]
print("RESULT", max(speeds))
"""

PLAN = """
import time
from pathlib import Path
from beni.config.compose import compose
from beni.paths import conf_dir
from beni.plan import show
import contextlib, io
start = time.perf_counter()
for file in sorted((conf_dir() / "recipe").glob("*.yaml")):
    with contextlib.redirect_stdout(io.StringIO()):
        show(compose([f"recipe={file.stem}"]), (768, 1024), 128, 64, (1, 1), False)
print("RESULT", time.perf_counter() - start)
"""


LLAVA = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, "benchmarks")
if __name__ == "__main__":
    from harness.compared import OURS, Comparison, arguments
    options = arguments("beni").parse_args(["--rounds", "1", "--steps", "4", "--precision", "fp32"])
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name), options)
        print("RESULT", comparison.arms({"beni": OURS["beni"]}, 1)["beni"].rate(comparison.samples))
"""


def measure(tree: Path, program: str, *arguments: str) -> float:
    """What a program prints in another process, which imports beni from ``tree``.

    Raises:
        RuntimeError: with what it said, when it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        command = [sys.executable, file.name, *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{tree}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return float(lines[-1].split()[1])


def revision(tree: Path) -> str:
    """The commit of a checkout, with a plus where files of it differ."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


QUANTITIES = {
    "steps": ("steps/s of the default run", TRAIN, 1),
    "llava": ("samples/s of vs_hf_trainer's arm", LLAVA, 1),
    "plans": ("seconds to plan all recipes", PLAN, -1),
}
"""Name -> what it is, the program that measures it, and whether more is better."""


def main() -> None:
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("--before", type=Path, required=True, help="the other checkout")
    command.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    command.add_argument("--steps", type=int, default=60, help="of the default run (%(default)s)")
    command.add_argument("--only", choices=QUANTITIES, action="append", help="quantities that are measured (all)")
    command.add_argument("--name", default="revisions", help="of the result (%(default)s)")
    options = command.parse_args()
    trees = {"before": options.before.resolve(), "now": HERE}
    arguments = {"steps": (str(options.steps), str(options.steps // 4))}
    rows, rounds = [], {}
    for quantity in options.only or QUANTITIES:
        about, program, sign = QUANTITIES[quantity]
        seen: dict[str, list[float]] = {name: [] for name in trees}
        for number in range(options.rounds):
            for name in sorted(trees, reverse=number % 2 == 1):  # each goes first as often as the other
                seen[name].append(measure(trees[name], program, *arguments.get(quantity, ())))
            print(json.dumps({quantity: seen}), flush=True)
        paired = [(now / before) ** sign for before, now in zip(seen["before"], seen["now"], strict=True)]
        middle = {name: median(values) for name, values in seen.items()}
        spread = f"{min(paired):.3f} to {max(paired):.3f}"
        ratio = (middle["now"] / middle["before"]) ** sign
        rows.append([about, f"{middle['before']:.2f}", f"{middle['now']:.2f}", f"{ratio:.3f}", spread])
        rounds[quantity] = seen
    write_result(
        options.name,
        "A checkout against one before it: how fast it trains and plans.",
        ["median of", "before", "now", "times as fast", "in single rounds"],
        rows,
        [
            f"{options.rounds} rounds in turn; processes of their own, one thread for steps and plans, two for llava",
            f"before: {revision(trees['before'])}; now: {revision(HERE)}",
        ],
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
