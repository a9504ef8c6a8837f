"""The plan of a run, ``frozen``, ``full`` or ``lora`` per component, applied to the model and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from beni.components import BACKBONES, COMPONENTS
from beni.errors import TrainabilityError
from beni.model.quantized import packed_layers
from beni.nn.batch_norm import batch_norms
from beni.views.base import Views


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


def require_weights_of(model: nn.Module, run: Mapping[str, Any]) -> None:
    """Return when every component that ``train.thaw`` or ``optim.lr_scale`` speaks of has weights.

    Raises:
        TrainabilityError: for each that has none, so that nothing of it could thaw or learn.
    """
    said = []
    for section, key, neutral in (("train", "thaw", 0), ("optim", "lr_scale", 1)):
        for component, value in run[section][key].items():
            if value != neutral and not has_weights(model, component):
                option = run["choices"].get(component, "it")
                said.append(
                    f"{section}.{key}.{component}={value}, but {component}={option} has no weights\n"
                    f"  fix: leave out {section}.{key}.{component}, or choose another option of {component}"
                )
    if said:
        raise TrainabilityError("\n".join(said))


def plan_notices(model: nn.Module, run: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know of a run's plan: modes that were named for components without weights, an attention
    that training does not use, gates that drop tokens before they have learned which, a CNN that learns from nothing,
    and what the loader computes.
    """
    attention = run["llm"].get("attn_implementation", "auto")
    if attention != "auto" and run["compute"]["layout"] == "packed":
        yield (
            f"llm.attn_implementation={attention} is for generation: packed samples are trained with an attention of "
            "their own wherever the model takes it (compute.layout=padded trains with the one named)"
        )
    if run["selector"].get("phase") == "drop" and run["train"]["init_from"] is None:
        yield (
            "selector.phase=drop with a gate that was not trained drops tokens nearly at random: train a run with "
            "selector.phase=soft, and start from it with train.init_from"
        )
    if _learns_by_batch_norm(model, run):
        yield (
            "BatchNorm of vision keeps the statistics that were measured before training: at the rate of the rest its "
            "features can saturate, so that pictures look alike; try optim.lr_scale.vision=0.03"
        )
    views = getattr(model, "views", None)
    if isinstance(views, Views) and (loading := views.loading_flops()):
        option = run["choices"].get("views", "custom")
        yield f"views={option} takes {loading:.1e} FLOPs for each image in the loader, on no other bill"
    for component, mode in run["train"]["plan"].items():
        if mode != "full" and component not in BACKBONES and not has_weights(model, component):
            yield (
                f"train.plan.{component}={mode} changes nothing: {component}={run['choices'].get(component, 'it')} "
                "has no weights"
            )


def _learns_by_batch_norm(model: nn.Module, run: Mapping[str, Any]) -> bool:
    """Whether a vision encoder with BatchNorm begins with drawn weights, at the rate of everything else."""
    drawn = run["vision"].get("weights") == "random" and run["train"]["init_from"] is None
    learns = run["train"]["plan"]["vision"] == "full" and run["optim"]["lr_scale"].get("vision", 1) >= 1
    return drawn and learns and bool(batch_norms(model.get_submodule("vision")))


def has_weights(model: nn.Module, component: str) -> bool:
    """Whether anything of a component can be trained or frozen."""
    part = getattr(model, component)
    return next(part.parameters(), None) is not None or next(iter(packed_layers(part)), None) is not None


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Component -> how many parameters train and how many are frozen (a tied pair counts once, packed weights too)."""
    counts = {component: {"trained": 0, "frozen": 0} for component in COMPONENTS}
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    for component in COMPONENTS:
        counts[component]["frozen"] += sum(math.prod(p.shape) for _, p in packed_layers(getattr(model, component)))
    return counts
