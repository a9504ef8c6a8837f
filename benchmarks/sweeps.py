"""What a sweep costs besides its runs: how long 200 arms take to be submitted, and what two arms at a time save.

SLURM is played by programs that take every job and run none: what is timed is what beni does before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import interleaved, write_result

SBATCH = "#!/bin/sh\necho Submitted batch job 7\n"
CONNECTORS = "connector=linear,mlp2x_gelu,swiglu,mlp3x_gelu"


def submitted(home: Path, arms: int) -> tuple[float, float]:
    """Seconds from the command to its end for so many arms (four connectors, the rest seeds), and for two."""
    programs = home / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue", "sacct"):
        (programs / name).write_text(SBATCH if name == "sbatch" else "#!/bin/sh\n")
        (programs / name).chmod(0o755)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}

    def seconds(name: str, seeds: int, connectors: str) -> float:
        seeds_swept = "train.seed=" + ",".join(map(str, range(seeds)))
        command = ["-m", "launcher=slurm_cpu", f"study.name={name}", connectors, seeds_swept]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "beni.train", *command], cwd=home, env=env, check=True)
        return time.perf_counter() - started

    return seconds("many", arms // 4, CONNECTORS), seconds("two", 2, "connector=linear")


def train(home: Path, name: str, at_a_time: int, steps: int) -> None:
    """A sweep of four arms of the default job, so many at a time."""
    values = [f"train.steps={steps}", "data.heldout=64", "eval.gallery=0", f"study.name={name}"]
    sweep = ["-m", "connector=linear,mlp2x_gelu", "train.seed=0,1", f"launcher.jobs={at_a_time}"]
    subprocess.run(
        [sys.executable, "-m", "beni.train", *sweep, *values], cwd=home, check=True, stderr=subprocess.DEVNULL
    )
    shutil.rmtree(home / "runs" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arms", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        many, two = submitted(home, arguments.arms)
        timed = interleaved(
            {
                "one": lambda: train(home, "one", 1, arguments.steps),
                "two": lambda: train(home, "two", 2, arguments.steps),
            },
            arguments.rounds,
            warmup=0,
        )
    one, both = timed["one"], timed["two"]
    rows = [
        [f"{arguments.arms} arms submitted", f"{many:.1f} s", "-"],
        ["2 arms submitted", f"{two:.1f} s", "-"],
        ["4 arms trained, one after another", f"{one.best:.1f} s (+{one.spread:.0%})", "1"],
        ["4 arms trained, two at a time", f"{both.best:.1f} s (+{both.spread:.0%})", f"{both.best / one.best:.2f}"],
    ]
    write_result(
        "sweeps",
        "What a sweep costs besides its runs, and what launcher.jobs=2 saves on this machine.",
        ["what", "time", "ratio"],
        rows,
        [
            "submitting: from the command to its end, imports included; arms are composed, checked, planned, frozen "
            "and given to an sbatch that answers at once",
            f"training: the default job with {arguments.steps} steps, from the command to its end, best of "
            f"{arguments.rounds} interleaved rounds, in brackets how much slower the slowest was",
        ],
        many=many,
        two=two,
        ratio=both.best / one.best,
    )


if __name__ == "__main__":
    main()
