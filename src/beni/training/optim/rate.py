"""The learning rate as a pure function of the step: linear warm-up, then one of four ways down.

Cosine (arXiv 1608.03983), linear, constant, and ``wsd``: warm up, stay, decay (arXiv 2404.06395; arXiv 2405.18392
compares it with cosine), whose plateau can be cut and continued at any length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def learning_rate(step: int, steps: int, settings: Mapping[str, Any]) -> float:
    """Rate of optimizer step ``step`` (from 0) of ``steps``; it reaches ``min_lr`` at the last of them, where more than
    one is left after the warm-up.

    Args:
        settings: ``schedule``, ``lr``, ``min_lr``, ``warmup_ratio`` and ``decay_ratio`` of config/sections/optim.py.
    """
    peak, floor = settings["lr"], settings["min_lr"]
    warmup = round(settings["warmup_ratio"] * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    match settings["schedule"]:
        case "cosine":
            return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return floor + (peak - floor) * (1 - progress)
        case "wsd":
            falling = min(max(1, round(settings["decay_ratio"] * steps)), steps - 1 - warmup)
            left = steps - 1 - step
            return peak if left >= falling else floor + (peak - floor) * left / falling
        case "constant":
            return peak
        case unknown:
            raise ValueError(f"no schedule {unknown}")  # config/check.py has refused it
