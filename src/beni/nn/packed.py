"""A linear layer whose frozen weight is kept packed in few bits, by whichever library.

The packed tensors are plain buffers, so that saving, loading, moving and sharding treat them like any other tensor;
each library's own layer has rules of its own for all four. Quantizing, dequantizing and multiplying stay the library's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "packed_"


class Packing(ABC):
    """How a weight is packed: as integers and 32-bit floats, since others are rounded where models are loaded."""

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """``(out, in)`` in 32 bits -> named tensors; shapes alone on the meta device."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """The inverse, up to rounding, in 32 bits."""

    @abstractmethod
    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        """``(..., in) -> (..., out)``, with a gradient for ``x`` and for nothing else."""


class PackedLinear(nn.Linear):
    """A layer in place of ``linear``, whose weight it packs and whose bias it keeps; neither trains."""

    def __init__(self, linear: nn.Linear, packing: Packing) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.packing = linear.in_features, linear.out_features, packing
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.repack(linear.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the unpacked weight."""
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight, unpacked anew each time."""
        return self.packing.unpack(self.packed(), self.shape)

    def packed(self) -> dict[str, Tensor]:
        """The packed tensors, by the names that the packing gave them."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in self.named_buffers(recurse=False)}

    @torch.no_grad()
    def repack(self, weight: Tensor) -> None:
        """Takes another weight."""
        for name, tensor in self.packing.pack(weight.detach().float()).items():
            self.register_buffer(f"{PREFIX}{name}", tensor)

    @torch.no_grad()
    def unpacked(self) -> nn.Linear:
        """An ordinary layer with the rounded weight."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device=self.weight.device)
        linear.weight.copy_(self.weight)
        linear.weight.requires_grad_(False)
        linear.register_parameter("bias", self.bias)
        return linear

    def forward(self, input: Tensor) -> Tensor:
        x, bias = input, self.bias
        if x.is_meta:  # a dry run counts products, and knows none of the libraries' operators
            weight = torch.empty(self.shape, dtype=x.dtype, device="meta")
            return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _product(self.packing, x, self.packed(), self.shape, None if bias is None else bias.to(x.dtype))


@torch.compiler.disable  # the libraries' operators are not all known to the compiler: bitsandbytes 0.50.2 fails in it
def _product(
    packing: Packing, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None
) -> Tensor:
    return packing.linear(x, packed, shape, bias)


def frozen_linear(
    x: Tensor, packing: Packing, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """``Packing.linear`` by unpacking, for packings whose library has no kernel with a gradient."""
    out = cast(Tensor, _FrozenLinear.apply(x, packing, packed, shape))
    return out if bias is None else out + bias


class _FrozenLinear(torch.autograd.Function):
    """A product with a packed weight that keeps nothing for the backward pass but the packed weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        ctx.packing, ctx.packed, ctx.shape = packing, packed, shape
        return x @ packing.unpack(packed, shape).to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0]
        return gradient @ ctx.packing.unpack(ctx.packed, ctx.shape).to(gradient.dtype), None, None, None
