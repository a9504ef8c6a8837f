"""What runs would cost, told before anything is launched: tokens, parameters, FLOPs, memory, GPU-hours.

A text of 128 tokens, half of them supervised, and an image of 768x1024 pixels stand for a sample, as in ``beni.plan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

GPU_TFLOPS = 400
"""Rate at which GPU-hours are counted: what an H100 reaches in bf16 on a good day."""


class Matched(TypedDict):
    """How a run meets the budget of its study.

    Attributes:
        budget: how much it was to have of what ``study.match`` names.
        amount: how much it has.
        value: that was chosen for the key ``study.solve``; None where the run was left as it is.
    """

    budget: float
    amount: float
    value: int | None


class Judged(TypedDict):
    """What ``job --check`` says of a run: ``problem``, or else the rest.

    Attributes:
        problem: why the run is impossible.
        tokens: most visual tokens of a sample.
        trained: trainable parameters.
        flops: of all training steps.
        memory: bytes of each process at its most.
        matched: under ``study.match``.
    """

    problem: str | None
    tokens: int
    trained: int
    flops: float
    memory: int
    matched: NotRequired[Matched]


def told(estimates: Sequence[Judged], launchers: Sequence[Mapping[str, Any]]) -> str:
    """One line about all runs of a sweep."""
    from beni.analysis import formats

    total = sum(one["flops"] for one in estimates)
    runs = "1 run" if len(estimates) == 1 else f"{len(estimates)} runs"
    parts = [
        f"{runs}: {_range([one['tokens'] for one in estimates])} visual tokens",
        f"{_range([one['trained'] for one in estimates])} trainable parameters",
        f"{formats.count(total)} training FLOPs",
        f"up to {max(one['memory'] for one in estimates) / 2**30:.1f} GiB per process",
    ]
    if any(launcher.get("gpus_per_node") for launcher in launchers):
        parts.append(f"{total / (GPU_TFLOPS * 1e12 * 3600):.2g} GPU-hours at {GPU_TFLOPS} TFLOP/s")
    return ", ".join(parts)


def _range(values: Sequence[int]) -> str:
    from beni.analysis import formats

    low, high = (formats.count(one) for one in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
