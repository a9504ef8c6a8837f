"""HQQ, half-quadratic quantization (https://mobiusml.github.io/hqq_blog/): 1 to 8 bits without calibration data.

The scales and zeros of each group are fitted to the weight under a norm that forgives outliers. Plain torch, so it runs
wherever torch does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from hqq.core.quantize import Quantizer
from torch import Tensor, nn

from beni.config.ranges import AtLeast, Example
from beni.errors import CompositionError
from beni.nn.linear import chosen_layers
from beni.nn.packed import Packing, frozen_linear
from beni.quantization.base import Quantization, by_component, pack_layers


class Hqq(Quantization, Packing):
    """``bits`` a weight, and a scale and a zero for each group along the inputs.

    Args:
        targets: see ``by_component``.
        bits: of a weight.
        group_size: weights of a group, a divisor of every target's inputs.
    """

    def __init__(
        self,
        *,
        targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]],
        bits: Literal[8, 4, 2, 1],
        group_size: Annotated[int, AtLeast(1), Example("64")],
    ) -> None:
        self.targets, self.bits, self.group_size = by_component(targets), bits, group_size

    def require(self, device: torch.device) -> None:
        """Any device will do."""

    def quantize(self, component: nn.Module, name: str) -> None:
        for place, layer in chosen_layers(component, name, self.targets[name], "quantization", "E-QUANT").items():
            if isinstance(layer, nn.Linear) and layer.in_features % self.group_size:
                raise CompositionError(
                    "E-QUANT",
                    f"group_size={self.group_size} does not divide the {layer.in_features} inputs of {place}",
                    groups=("quantization", name),
                    fix=f"set quantization.group_size to a divisor of {layer.in_features}",
                )
        pack_layers(component, name, self.targets[name], self)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed, meta = Quantizer.quantize(
            weight,
            nbits=self.bits,
            group_size=self.group_size,
            axis=1,
            optimize=not weight.is_meta,  # which only changes values, by looking at them
            device=str(weight.device),
        )
        return {"weight": packed, "scale": meta["scale"].float(), "zero": meta["zero"].float()}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        meta = {
            "compute_dtype": torch.float32,
            "packing": Quantizer.bit_to_packing[self.bits],
            "view_as_float": False,
            "nbits": self.bits,
            "scale": packed["scale"],
            "zero": packed["zero"],
            "shape": shape,
        }
        return Quantizer.dequantize(packed["weight"], meta)

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        return frozen_linear(x, self, packed, shape, bias)
