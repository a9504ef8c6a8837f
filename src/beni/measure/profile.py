"""A few steps under torch's profiler: a trace to look at, and what their wall time went into.

Idle is what is left of the wall time without the union of all kernels and without waiting for data. Kernels overlap,
so each kind counts what no kind before it covers: compute (matrix products, attention, the rest), then communication
(what compute does not hide), then copies. On a GPU the kernels of the device count; on a CPU operators do, each without
those inside it, so that Python and dispatch between them are idle time.
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

KINDS = ("products", "attention", "other", "communication", "copy")
NAMES = {
    "communication": ("nccl", "gloo", "c10d::", "record_param_comms"),
    "copy": ("memcpy", "memset", "aten::copy_", "aten::_to_copy"),
    "attention": ("flash", "fmha", "attention", "attn"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "convol", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
}
"""Kind -> words in the names of its kernels and operators; the first kind that fits counts."""

CONTAINERS = ("autograd::", "torch::autograd")
"""Events of the profiler that stand around operators."""

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
        self._done = False
        self._profile: profile | None = None
        self._waited = self._begun = 0.0

    def reached(self, finished: int, clock: Goodput) -> None:
        """So many steps have been taken; ``clock`` knows how long the loop has waited for data."""
        if self._done:
            return
        if self._profile is None and self.first - 1 <= finished < self.last:
            self.first = finished + 1  # a run that goes on within the range profiles the rest of it
            _wait_for_device()
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()
            self._waited, self._begun = clock.seconds["data"], sum(clock.split().values())
        elif self._profile is not None and finished == self.last:
            _wait_for_device()
            split = clock.split()
            self._profile.stop()
            self._write(sum(split.values()) - self._begun, split["data"] - self._waited, self._profile)
            self._profile, self._done = None, True
        elif finished >= self.last:
            self._done = True
            if not (self.folder / "shares.json").exists():
                steps = f"{self.first} to {self.last}"
                self.tell(f"steps {steps} are not profiled: the run resumed after step {finished}", {})

    def _write(self, wall: float, waited: float, found: profile) -> None:
        shares = fractions(split(kernels(found.events() or ()), wall, waited))
        values = {"first": self.first, "last": self.last, "seconds": wall, "shares": shares}
        trace = self.folder / "trace.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "shares.json").write_text(json.dumps(values, indent=1))
            found.export_chrome_trace(str(trace))
            kept = str(trace)
        except OSError as error:  # a full disk costs the trace, not the run
            trace.unlink(missing_ok=True)
            kept = f"{trace} could not be written: {error}"
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        self.tell(f"profile of steps {self.first} to {self.last}: {parts}; {kept}", shares)


def kernels(events: Iterable[FunctionEvent]) -> dict[str, list[Interval]]:
    """Kind -> (begin, end) in seconds, of the device's kernels where there are any, else of operators."""
    everything = list(events)
    on_device: list[Any] = [event for event in everything if event.device_type.name == "CUDA"]
    found: dict[str, list[Interval]] = {kind: [] for kind in KINDS}
    for event in on_device or everything:
        name = event.name.lower()
        operator = "::" in name and not name.startswith(CONTAINERS)
        if not event.is_user_annotation and (on_device or operator):
            found[kind_of(name)] += own(event)
    return found


def kind_of(name: str) -> str:
    """The kind of a kernel or operator, by its name in small letters."""
    return next((kind for kind, words in NAMES.items() if any(word in name for word in words)), "other")


def own(event: Any) -> list[Interval]:
    """When an event ran and none of those inside it did, in seconds."""
    intervals, begin = [], event.time_range.start
    for child in sorted((child.time_range.start, child.time_range.end) for child in event.cpu_children):
        intervals.append((begin, child[0]))
        begin = max(begin, child[1])
    intervals.append((begin, event.time_range.end))
    return [(start / 1e6, end / 1e6) for start, end in intervals if end > start]


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
    """The moments that lie in any interval, as intervals that do not overlap, in order."""
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
