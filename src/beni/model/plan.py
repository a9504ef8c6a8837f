"""The plan of a run, ``frozen``, ``full`` or ``lora`` per component, applied to the model and counted."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from beni.components import COMPONENTS
from beni.errors import TrainabilityError
from beni.model.quantized import packed_layers


def apply_plan(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Sets ``requires_grad`` of every parameter by its component's mode: ``frozen``, ``full`` or ``lora``.

    Raises:
        TrainabilityError: when nothing at all would train.
    """
    for name, parameter in model.named_parameters():
        mode = plan[name.partition(".")[0]]
        parameter.requires_grad_(mode == "full" or (mode == "lora" and "lora_" in name))
    if not any(p.requires_grad for p in model.parameters()):
        modes = ", ".join(f"{k}={v}" for k, v in plan.items())
        raise TrainabilityError(
            f"nothing trains under the plan {modes}\n  fix: set train.plan.llm=full, or choose a connector with weights"
        )


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Component -> how many parameters train and how many are frozen (a tied pair counts once, packed weights too)."""
    counts = {component: {"trained": 0, "frozen": 0} for component in COMPONENTS}
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    for component in COMPONENTS:
        counts[component]["frozen"] += sum(math.prod(p.shape) for _, p in packed_layers(getattr(model, component)))
    return counts
