"""Rules for adapters and quantization that no type expresses: which components they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beni.components import COMPONENTS

NONE = "beni.adapter.none.NoAdapter"


def adapter_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the ``adapter`` node under ``train.plan``, and of ``quantization``."""
    adapter, plan = run["adapter"], run["train"]["plan"]
    planned = [component for component in COMPONENTS if plan[component] == "lora"]
    if adapter["_target_"] == NONE:
        if planned:
            yield f"train.plan.{planned[0]}=lora needs an adapter\n  fix: set adapter=lora"
    elif problems := list(_targets(adapter.get("targets"), plan, planned)):
        yield from problems
    elif not planned:
        name = run.get("choices", {}).get("adapter", "lora")
        yield f"adapter={name}, but no component's plan is lora\n  fix: set train.plan.llm=lora, or adapter=none"
    yield from _quantization(run["quantization"])


def _targets(targets: Any, plan: Mapping[str, str], planned: list[str]) -> Iterator[str]:
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


def _quantization(node: Mapping[str, Any]) -> Iterator[str]:
    targets = node.get("targets")
    if isinstance(targets, dict):
        yield from (_no_component("quantization", name) for name in targets if name not in COMPONENTS)


def _no_component(group: str, name: str) -> str:
    return (
        f"{group}.targets.{name} is no component; expected some of {', '.join(COMPONENTS)}\n"
        f"  fix: leave {name} out of {group}.targets, or set {group}.targets=all-linear"
    )
