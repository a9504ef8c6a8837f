"""What all benchmarks share: alternatives timed in turn, and results that say how they were made.

Machines are shared and noisy, so alternatives run one after another in every round, and the fastest round of each is
compared: what is left of the noise then slows all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from beni.measure.latency import alternately

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Timed:
    """Seconds of every round of one alternative."""

    name: str
    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / fastest."""
        return max(self.seconds) / self.best - 1


def interleaved(alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, Timed]:
    """Runs every alternative once a round, in turn.

    Args:
        warmup: rounds before those that count.
    """
    seconds = alternately(alternatives, rounds, warmup)
    return {name: Timed(name, tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Where and with what a result was made; no name of the machine."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def write_result(
    name: str, question: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str], **values: Any
) -> Path:
    """Writes ``results/<name>.json`` and ``.md`` and prints the latter. Paths of the machine stay out of the command.

    Args:
        question: what was measured, one sentence.
        columns, rows: of the table.
        notes: what a reader must know beside it.
        values: more for the JSON file.
    """
    RESULTS.mkdir(exist_ok=True)
    where = machine()
    words = [f"../{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *words])
    table = [" | ".join(["", *map(str, row), ""]).strip() for row in (columns, ["---"] * len(columns), *rows)]
    about = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
    about_it = [*(f"- {note}" for note in notes), "", f"`{command}` on {about}."]
    text = "\n".join([f"# {name}", "", question, "", *table, "", *about_it])
    (RESULTS / f"{name}.md").write_text(text + "\n")
    result = {"question": question, "command": command, "machine": where, "columns": columns, "rows": rows} | values
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)
    return RESULTS / f"{name}.md"
