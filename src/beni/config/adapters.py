"""Rules for adapters that no type expresses: which components have some, and that their values are in range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from beni.config.schema import COMPONENTS

NONE = "beni.adapter.none.NoAdapter"


def adapter_ranges(run: Mapping[str, Any]) -> Iterable[str]:
    """Problems of the ``adapter`` node under ``train.plan``."""
    adapter, plan = run["adapter"], run["train"]["plan"]
    planned = [component for component in COMPONENTS if plan[component] == "lora"]
    if adapter["_target_"] == NONE:
        if planned:
            yield f"train.plan.{planned[0]}=lora needs an adapter\n  fix: set adapter=lora"
        return
    if adapter.get("r", 1) < 1:
        yield f"adapter.r={adapter['r']}, expected at least 1\n  fix: set adapter.r=8"
    if not 0 <= adapter.get("dropout", 0) < 1:
        yield f"adapter.dropout={adapter['dropout']}, expected a share in [0, 1)\n  fix: set adapter.dropout=0.05"
    targets = adapter.get("targets")
    if isinstance(targets, dict):
        for component in targets:
            if component not in planned:
                mode = plan.get(component, "no component")
                yield (
                    f"adapter.targets.{component} is given, but train.plan.{component} is {mode}, not lora\n"
                    f"  fix: leave it out, or set train.plan.{component}=lora"
                )
        for component in planned:
            if component not in targets:
                yield (
                    f"train.plan.{component}=lora, but adapter.targets names modules of {list(targets)} only\n"
                    f"  fix: set +adapter.targets.{component}=all-linear"
                )
