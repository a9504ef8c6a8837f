"""torchao's weight-only quantization (``quantize_``): whole numbers or floats of 8 bits, a scale for each output.

A quantized weight is a subclass of ``Tensor``; its plain tensors are kept here, and put together where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from beni.errors import ResourceError
from beni.nn.packed import Packing, frozen_linear
from beni.quantization.base import Quantization, by_component, pack_layers

FP8 = (8, 9)
"""Compute capability from which NVIDIA's GPUs know floats of 8 bits."""


class Int8(Quantization, Packing):
    """8-bit whole numbers.

    Args:
        targets: see ``by_component``.
    """

    def __init__(
        self, *, targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]]
    ) -> None:
        self.targets = by_component(targets)

    def require(self, device: torch.device) -> None:
        """Any device will do."""

    def quantize(self, component: nn.Module, name: str) -> None:
        pack_layers(component, name, self.targets[name], self)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        return _tensors(_quantized(weight, Int8WeightOnlyConfig))

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return _whole(packed, shape, Int8WeightOnlyConfig).dequantize()

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        return frozen_linear(x, self, packed, shape, bias)


class Fp8(Quantization, Packing):
    """8-bit floats (e4m3).

    Args:
        targets: see ``by_component``.
    """

    def __init__(
        self, *, targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]]
    ) -> None:
        self.targets = by_component(targets)

    def require(self, device: torch.device) -> None:
        if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < FP8:
            raise ResourceError(
                f"quantization=torchao_fp8 wants a GPU of compute capability {FP8[0]}.{FP8[1]} or more, {device} has "
                f"{found[0]}.{found[1]}\n  fix: set quantization=torchao_int8"
            )

    def quantize(self, component: nn.Module, name: str) -> None:
        pack_layers(component, name, self.targets[name], self)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        tensors = _tensors(_quantized(weight, Float8WeightOnlyConfig))
        return tensors | {"qdata": tensors["qdata"].view(torch.uint8)}  # as a float it would be rounded when loaded

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        floats = {**packed, "qdata": packed["qdata"].view(torch.float8_e4m3fn)}
        return _whole(floats, shape, Float8WeightOnlyConfig).dequantize()

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        return frozen_linear(x, self, packed, shape, bias)


def _quantized(weight: Tensor, kind: type) -> Any:
    """What ``quantize_`` makes of it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, kind(set_inductor_config=False))
    return layer.weight


def _tensors(weight: Any) -> dict[str, Tensor]:
    return {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}


def _whole(packed: Mapping[str, Tensor], shape: tuple[int, int], kind: type) -> Any:
    """The inverse; all that is not in the plain tensors follows from the shape."""
    like = _like(shape, kind)
    return type(like).__tensor_unflatten__(dict(packed), like.__tensor_flatten__()[1], like.shape, like.stride())


@cache
def _like(shape: tuple[int, int], kind: type) -> Any:
    return _quantized(torch.empty(shape, device="meta"), kind)
