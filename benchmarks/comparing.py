"""How long ``python -m beni.compare`` takes for studies of many runs.

One short run is trained; the others are copies of it with a seed, a rate and answers of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from beni.runs.files import CONFIG, GALLERY, IDENTITY, METRICS, SCORES, STATUS
from beni.runs.frozen import load_frozen
from beni.runs.identity import run_folder, signature
from beni.runs.status import read_status
from harness import write_result

LINES = 100
"""Lines of metrics.jsonl of each run; one a hundred steps of a long run."""
STUDIES = ((100, 5, 1000), (1000, 5, 100))
"""Runs, seeds of each arm, and examples, each asked with the true picture and with five ablations."""


def trained(home: Path) -> Path:
    """A finished run of the default job with few steps."""
    values = ["train.steps=4", "data.heldout=16", "eval.gallery=0", "study.name=one", "launcher=debug"]
    subprocess.run([sys.executable, "-m", "beni.train", *values], cwd=home, check=True, stderr=subprocess.DEVNULL)
    return next(path.parent for path in (home / "runs" / "one").glob(f"*/{CONFIG}"))


def copy(run: Path, study: str, arm: int, seed: int, examples: int, rng: random.Random) -> None:
    """A run of another study with a rate, a seed and answers of its own."""
    config = load_frozen(run)
    config["train"]["seed"], config["optim"]["lr"], config["study"]["name"] = seed, 1e-4 * (1 + arm), study
    folder = run.parents[1] / study / run_folder(config).name
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    for path in run.iterdir():
        if path.is_file() and path.name not in (CONFIG, IDENTITY, STATUS, SCORES, METRICS, GALLERY):
            shutil.copy(path, folder)
    identity = json.loads((run / IDENTITY).read_text())
    created = f"2026-01-01T{arm // 60:02d}:{arm % 60:02d}:{seed:02d}+00:00"
    own = {"signature": signature(config), "name": folder.name, "created": created}
    (folder / IDENTITY).write_text(json.dumps(identity | own))
    level = 0.5 + 0.001 * arm + 0.01 * rng.gauss(0, 1)
    given = [json.loads(line) for line in (run / SCORES).read_text().splitlines()]
    step, variants = given[0]["step"], list(dict.fromkeys(row["variant"] for row in given))
    with (folder / SCORES).open("w") as file:
        for number, variant in enumerate(variants):
            for example in range(examples):
                right = rng.random() < (level if number == 0 else 0.3)
                row = given[example % len(given)] | {"id": f"heldout-{example}", "cluster": f"heldout-{example // 4}"}
                file.write(json.dumps(row | {"variant": variant, "score": int(right), "step": step}) + "\n")
    status = read_status(run) | {"scored": {"step": step, "rows": len(variants) * examples}}
    (folder / STATUS).write_text(json.dumps({key: one for key, one in status.items() if "/accuracy" not in key}))
    lines = (run / METRICS).read_text().splitlines()
    (folder / METRICS).write_text("\n".join([lines[0]] * max(0, LINES - len(lines)) + lines) + "\n")


def compared(study: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds from the command to its end, and the most memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "beni.compare", str(study)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"beni.compare {study} ended with {status}")
    wall = time.perf_counter() - started
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def main() -> None:
    """Makes the studies, compares them, and writes the table."""
    command = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    command.add_argument("--most", type=int, default=1000, help="leaves out studies with more runs")
    command.add_argument("--rounds", type=int, default=1)
    arguments = command.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        run = trained(Path(name))
        for runs, seeds, examples in STUDIES:
            if runs > arguments.most:
                continue
            study, rng = f"s{runs}x{seeds}x{examples}", random.Random(0)
            for number in range(runs):
                copy(run, study, number // seeds, number % seeds, examples, rng)
            folder = run.parents[1] / study
            best = min(compared(folder) for _ in range(arguments.rounds))
            variants = (folder / next(folder.glob(f"*/{SCORES}"))).read_text().count("\n") // examples
            what = f"{runs} runs: {runs // seeds} arms, {seeds} seeds, {variants * examples} rows each"
            rows.append((what, f"{best[0]:.1f} s", f"{best[1]:.1f} s", f"{best[2]:.2f} GiB"))
            shutil.rmtree(folder)
    write_result(
        "comparing",
        "How long does python -m beni.compare take for many finished runs?",
        ("study", "wall", "CPU", "memory"),
        rows,
        [
            f"from the command to its end, with imports and all files of the report; {LINES} lines of metrics a run",
            "the CPU seconds are those of the command alone",
        ],
    )


if __name__ == "__main__":
    main()
