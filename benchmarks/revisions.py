"""Whether a change costs speed: this checkout and another one, run in turn on the same machine.

    git worktree add ../before REVISION
    python benchmarks/revisions.py --before ../before

Measured are the steps of the default run per second, and the seconds in which every recipe is composed, built without
weights and planned. Each measurement is a process of its own with one thread; the two checkouts take turns, and the
best of each is compared, since what is left of a shared machine's noise only ever slows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
overrides += [f"log.every={every}" if new else f"log.every={every}", f"train.steps={steps}"]
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


def main() -> None:
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("--before", type=Path, required=True, help="the other checkout")
    command.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    command.add_argument("--steps", type=int, default=120, help="of the default run (%(default)s)")
    command.add_argument("--name", default="revisions", help="of the result (%(default)s)")
    arguments = command.parse_args()
    trees = {"before": arguments.before.resolve(), "now": HERE}
    speed: dict[str, list[float]] = {name: [] for name in trees}
    planning: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(arguments.rounds):
        for name, tree in trees.items():
            speed[name].append(measure(tree, TRAIN, str(arguments.steps), str(arguments.steps // 4)))
        for name, tree in trees.items():
            planning[name].append(measure(tree, PLAN))
        print(json.dumps({"steps/s": speed, "planning": planning}), flush=True)
    best = {name: (max(speed[name]), min(planning[name])) for name in trees}
    rows = [[name, f"{best[name][0]:.2f}", f"{best[name][1]:.1f}"] for name in trees]
    ratios = best["now"][0] / best["before"][0], best["before"][1] / best["now"][1]
    rows.append(["now : before", f"{ratios[0]:.3f}", f"{ratios[1]:.3f} times as fast"])
    spread = max(max(values) / min(values) - 1 for values in (*speed.values(), *planning.values()))
    write_result(
        arguments.name,
        "Steps of the default run per second, and seconds to plan every recipe, in two checkouts.",
        ["checkout", "steps/s", "seconds to plan all recipes"],
        rows,
        [f"best of {arguments.rounds} rounds in turn, one thread; rounds of one checkout differ by up to {spread:.0%}"],
        rounds={"steps_per_s": speed, "planning_s": planning},
    )


if __name__ == "__main__":
    main()
