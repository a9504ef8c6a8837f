"""Seconds of alternatives that run in turn, and how many times as long one takes as another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

DRAWS = 2000
"""Bootstrap draws of an interval."""


def alternately(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round. Machines are shared and noisy: what comes in turn is slowed alike.

    Every second round runs them in the opposite order.

    Args:
        warmup: rounds before those that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in list(calls.items())[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """How many times as long one alternative takes as another.

    Attributes:
        median: over rounds.
        low, high: 95 % interval of the median, by bootstrap over rounds.
    """

    median: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Round by round, what ``ours`` took over what ``theirs`` took."""
    rounds = np.asarray(ours) / np.asarray(theirs)
    drawn = np.random.default_rng(0).choice(rounds, (DRAWS, len(rounds)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(rounds)), float(low), float(high))
