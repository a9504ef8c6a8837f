"""What a run cost, as its status tells: FLOPs of a step by component, utilisation, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beni.analysis import formats
from beni.runs.read import Run, number

UTILISATION = {"mfu": "MFU", "mfu_causal": "MFU, causal attention halved", "hfu": "HFU"}
NOT_BILLED = {"padding": "padding (not included)", "recomputed": "recomputation (not included)"}
TIME = {
    "compute": "compute",
    "data": "waiting for data",
    "copy": "copies to the device",
    "communication": "communication",
    "checkpoint": "waiting for checkpoints",
    "evaluation": "evaluation",
    "restart": "startup and lost work",
    "other": "other",
}

PROFILE = {
    "products": "matrix products and convolutions",
    "attention": "attention",
    "other": "other compute",
    "communication": "exposed communication",
    "copy": "exposed copies",
    "data": "waiting for data",
    "idle": "idle",
}


def utilisation(run: Run) -> list[tuple[str, str]]:
    """Label and value of each rate that the run measured."""
    found = [(label, number(run.status.get(key))) for key, label in UTILISATION.items()]
    rows = [(label, formats.share(value)) for label, value in found if value is not None]
    reached = number(run.status.get("tflops_per_s"))
    if reached is not None:
        rows.insert(0, ("FLOP/s", formats.count(reached * 1e12)))
    peaks = {"peak_tflops": "peak FLOP/s of the device", "measured_tflops": "FLOP/s of a matrix product on it"}
    for key, label in peaks.items():
        value = number(run.status.get(key))
        if value is not None and rows:
            rows.append((label, formats.count(value * 1e12)))
    return rows


def flops(run: Run) -> list[dict[str, Any]]:
    """Rows of component, FLOPs of a step and share of the useful ones; then what is not billed."""
    told = _below(run.status, "flops/")
    useful = told.pop("useful", None)
    told.pop("causal", None)
    if not useful:
        return []
    beside = {key: told.pop(key) for key in NOT_BILLED if key in told}
    rows = [{"name": name, "flops": value, "share": value / useful} for name, value in told.items()]
    rows.append({"name": "total", "flops": useful, "share": None})
    return rows + [{"name": NOT_BILLED[k], "flops": v, "share": v / useful} for k, v in beside.items() if v]


def time(run: Run) -> list[dict[str, Any]]:
    """Rows of what the time went into and its share, the largest first."""
    told = _below(run.status, "goodput/")
    rows = [{"name": TIME.get(part, part), "share": share} for part, share in told.items()]
    return sorted(rows, key=lambda row: -row["share"])


def profile(run: Run) -> list[dict[str, Any]]:
    """Rows of what the wall time of the profiled steps went into and its share; none without ``log.profile``."""
    return [{"name": PROFILE.get(part, part), "share": share} for part, share in _below(run.status, "profile/").items()]


def _below(status: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found = {key.removeprefix(prefix): number(value) for key, value in status.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if value is not None}
