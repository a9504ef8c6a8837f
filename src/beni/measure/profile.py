"""A few steps under torch's profiler: a trace to look at, and what their wall time went into.

Idle is what is left of the wall time without the union of all kernels and without waiting for data. Kernels overlap,
so each kind counts what no kind before it covers: compute, then communication (what compute does not hide), then
copies. On a GPU the kernels of the device count; on a CPU the innermost operators do, so that Python and dispatch
between them are idle time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from beni.measure.goodput import Goodput, fractions

KINDS = ("compute", "communication", "copy")
COMMUNICATION = ("nccl", "gloo", "c10d::", "record_param_comms")
COPY = ("memcpy", "memset", "aten::copy_", "aten::_to_copy")
WAITS = ("cudadevicesynchronize", "cudastreamsynchronize", "profilerstep")

Interval = tuple[float, float]


class Profile:
    """Profiles the steps of a range, once.

    Args:
        steps: (first, last), from 1.
        folder: for ``trace.json.gz`` and ``shares.json``.
        tell: is handed a line for the reader and the shares of each part.
    """

    def __init__(self, steps: tuple[int, int], folder: Path, tell: Callable[[str, Mapping[str, float]], None]) -> None:
        (self.first, self.last), self.folder, self.tell = steps, folder, tell
        self._profile: profile | None = None
        self._waited = self._begun = 0.0

    def reached(self, finished: int, clock: Goodput) -> None:
        """So many steps have been taken; ``clock`` knows how long the loop has waited for data."""
        if self._profile is None and finished == self.first - 1:
            _wait_for_device()
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._waited, self._begun = clock.seconds["data"], sum(clock.split().values())
            self._profile.start()
        elif self._profile is not None and finished == self.last:
            _wait_for_device()
            split = clock.split()
            self._profile.stop()
            self._write(sum(split.values()) - self._begun, split["data"] - self._waited, self._profile)
            self._profile = None

    def _write(self, wall: float, waited: float, found: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self.folder / "trace.json.gz"))
        shares = fractions(split(kernels(found.events() or ()), wall, waited))
        values = {"first": self.first, "last": self.last, "seconds": wall, "shares": shares}
        (self.folder / "shares.json").write_text(json.dumps(values, indent=1))
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        self.tell(f"profile of steps {self.first} to {self.last}: {parts}; {self.folder / 'trace.json.gz'}", shares)


def kernels(events: Iterable[FunctionEvent]) -> dict[str, list[Interval]]:
    """Kind -> (begin, end) in seconds, of the device's kernels where there are any, else of the innermost operators."""
    everything = list(events)
    on_device: list[Any] = [event for event in everything if event.device_type.name == "CUDA"]
    chosen = on_device or [event for event in everything if not event.cpu_children]
    found: dict[str, list[Interval]] = {kind: [] for kind in KINDS}
    for event in chosen:
        name = event.name.lower()
        if name.startswith(WAITS):
            continue
        kind = "communication" if any(word in name for word in COMMUNICATION) else "compute"
        kind = "copy" if name.startswith(COPY) else kind
        found[kind].append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    return found


def split(intervals: Mapping[str, Sequence[Interval]], wall: float, waited: float) -> dict[str, float]:
    """Seconds of ``wall`` by kind, waiting for data and idle; they sum to ``wall``.

    Args:
        waited: seconds for which the loop waited for data; kernels that ran meanwhile take precedence.
    """
    seconds: dict[str, float] = {}
    covered: list[Interval] = []
    before = 0.0
    for kind in KINDS:
        covered = union([*covered, *intervals.get(kind, ())])
        length = min(sum(end - begin for begin, end in covered), wall)
        seconds[kind], before = length - before, length
    seconds["data"] = min(waited, wall - before)
    return seconds | {"idle": wall - before - seconds["data"]}


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments, as intervals that do not overlap, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
