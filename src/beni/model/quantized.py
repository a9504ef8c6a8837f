"""Quantization of a whole model: the frozen layers of some components are packed, before adapters stand beside them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from beni.components import BACKBONES
from beni.errors import CompositionError
from beni.model.configuration import BeniConfig
from beni.nn.linear import Targets
from beni.nn.packed import PackedLinear
from beni.quantization.base import Quantization


@runtime_checkable
class Quantizable(Protocol):
    """What is asked of a model of named components, some of which are packed."""

    config: BeniConfig
    quantization: Quantization

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a dotted name."""
        ...


def quantize(model: Quantizable) -> None:
    """Packs what the model's quantization targets.

    Raises:
        CompositionError: when a component that trains in full is among it.
    """
    for name in model.quantization.targets:
        mode = model.config.plan.get(name)
        if mode not in ("frozen", "lora"):
            raise CompositionError(
                "E-QUANT",
                f"quantization.targets.{name} is given, and only frozen weights can be packed, but train.plan.{name}="
                f"{mode}",
                groups=("quantization", name),
                fix=f"set train.plan.{name}=lora with adapter=lora, or train.plan.{name}=frozen",
            )
        model.quantization.quantize(backbone(model, name), name)


def dequantize(model: Quantizable, name: str) -> None:
    """Gives the packed layers of one component rounded weights in 32 bits, and strikes it from the model's config."""
    component = backbone(model, name)
    for place, layer in packed_layers(component):
        parent, _, last = place.rpartition(".")
        setattr(component.get_submodule(parent), last, layer.unpacked())
    kept: dict[str, Targets] = {other: wanted for other, wanted in model.quantization.targets.items() if other != name}
    if len(kept) < len(model.quantization.targets):
        model.config.parts["quantization"]["targets"] = model.quantization.targets = kept


def packed_layers(component: nn.Module) -> list[tuple[str, PackedLinear]]:
    """The packed layers, with their names."""
    return [(name, module) for name, module in component.named_modules() if isinstance(module, PackedLinear)]


def backbone(model: Quantizable, name: str) -> nn.Module:
    """The module that is changed: the Hugging Face model inside vision or llm, else the stage itself."""
    return model.get_submodule(f"{name}.model" if name in BACKBONES else name)
