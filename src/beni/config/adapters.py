"""Rules for adapters and quantization that no type expresses: which components they mean, which values are in range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from beni.config.schema import COMPONENTS

NONE = "beni.adapter.none.NoAdapter"


def adapter_ranges(run: Mapping[str, Any]) -> Iterable[str]:
    """Problems of the ``adapter`` node under ``train.plan``, and of ``quantization``."""
    adapter, plan = run["adapter"], run["train"]["plan"]
    planned = [component for component in COMPONENTS if plan[component] == "lora"]
    if adapter["_target_"] == NONE:
        if planned:
            yield f"train.plan.{planned[0]}=lora needs an adapter\n  fix: set adapter=lora"
    elif problems := [*_values(adapter), *_targets(adapter.get("targets"), plan, planned)]:
        yield from problems
    elif not planned:
        name = run.get("choices", {}).get("adapter", "lora")
        yield f"adapter={name}, but no component's plan is lora\n  fix: set train.plan.llm=lora, or adapter=none"
    yield from _quantization(run["quantization"])


def _values(adapter: Mapping[str, Any]) -> Iterable[str]:
    if adapter.get("r", 1) < 1:
        yield f"adapter.r={adapter['r']}, expected at least 1\n  fix: set adapter.r=8"
    if adapter.get("alpha", 1) < 1:
        yield f"adapter.alpha={adapter['alpha']}, expected at least 1\n  fix: set adapter.alpha=16"
    if not 0 <= adapter.get("dropout", 0) < 1:
        yield f"adapter.dropout={adapter['dropout']}, expected a share in [0, 1)\n  fix: set adapter.dropout=0.05"


def _targets(targets: Any, plan: Mapping[str, str], planned: list[str]) -> Iterable[str]:
    if not isinstance(targets, dict):
        return
    for component in targets:
        if component not in plan:
            yield _no_component("adapter", component)
        elif component not in planned:
            yield (
                f"adapter.targets.{component} is given, but train.plan.{component} is {plan[component]}, not lora\n"
                f"  fix: leave it out, or set train.plan.{component}=lora"
            )
    for component in planned:
        if component not in targets:
            yield (
                f"train.plan.{component}=lora, but adapter.targets names modules of {list(targets)} only\n"
                f"  fix: set +adapter.targets.{component}=all-linear"
            )


def _quantization(node: Mapping[str, Any]) -> Iterable[str]:
    targets = node.get("targets")
    if isinstance(targets, dict):
        yield from (_no_component("quantization", name) for name in targets if name not in COMPONENTS)
    if node.get("group_size", 1) < 1:
        yield (
            f"quantization.group_size={node['group_size']}, expected at least 1\n  fix: set quantization.group_size=64"
        )
    if not 0 <= node.get("threshold", 0) < math.inf:
        yield (
            f"quantization.threshold={node['threshold']}, expected at least 0\n"
            "  fix: set quantization.threshold=6.0, or 0 for none"
        )


def _no_component(group: str, name: str) -> str:
    return (
        f"{group}.targets.{name} is no component; expected some of {', '.join(COMPONENTS)}\n"
        f"  fix: leave {name} out of {group}.targets, or set {group}.targets=all-linear"
    )
