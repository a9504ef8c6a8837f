"""Quantization: frozen linear layers kept in few bits, so that a large llm fits beside what trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from beni.errors import CompositionError
from beni.nn.linear import Targets, chosen_layers
from beni.nn.packed import PackedLinear, Packing


class Quantization(ABC):
    """Packs the frozen linear layers of some components. Subclasses are final.

    Attributes:
        targets: component -> ``all-linear`` (all but the head), or ends of module names.
    """

    targets: Mapping[str, Targets]

    @abstractmethod
    def require(self, device: torch.device) -> None:
        """Raises ResourceError when ``device`` cannot compute with such weights."""

    @abstractmethod
    def quantize(self, component: nn.Module, name: str) -> None:
        """Packs the targets of ``component``, called ``name``, in place; shapes alone on the meta device.

        Raises:
            CompositionError: when a target does not exist or cannot be packed.
        """


def by_component(targets: Targets | Mapping[str, Targets]) -> dict[str, Targets]:
    """``all-linear`` (all but the head) or ends of module names are meant for the llm; a mapping names components."""
    return dict(targets) if isinstance(targets, Mapping) else {"llm": targets}


def pack_layers(component: nn.Module, name: str, wanted: Targets, packing: Packing) -> None:
    """Puts a ``PackedLinear`` in the place of every layer that ``wanted`` stands for.

    Raises:
        CompositionError: when one of them does not exist, or is no ``nn.Linear``.
    """
    for place, layer in chosen_layers(component, name, wanted, "quantization", "E-QUANT").items():
        if not isinstance(layer, nn.Linear):
            raise CompositionError(
                "E-QUANT",
                f"{place} of {name} is a {type(layer).__name__}, which no library packs",
                groups=("quantization", name),
                fix="set quantization=none, or choose another llm",
            )
        parent, _, last = place.rpartition(".")
        setattr(component.get_submodule(parent), last, PackedLinear(layer, packing))
