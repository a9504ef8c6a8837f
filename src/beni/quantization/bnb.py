"""bitsandbytes: 4-bit NormalFloat of QLoRA (arXiv 2305.14314) and LLM.int8() (arXiv 2208.07339), on CPUs and GPUs.

Packed tensors and kernels are those of ``bnb.nn.Linear4bit`` and ``Linear8bitLt``. On a CPU the int8 product has the
precision of its input, as the library computes in training; on a GPU inputs are rounded to 8 bits too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from bitsandbytes import functional
from bitsandbytes.autograd._functions import MatmulLtState, matmul, matmul_4bit
from torch import Tensor, nn

from beni.config.ranges import AtLeast, Example
from beni.nn.packed import Packing, frozen_linear
from beni.quantization.base import Quantization, by_component, pack_layers

BLOCK = 64
"""Weights that share a scale, as in QLoRA."""

with torch.device("cpu"):  # made at its first use it would stay on that device for good, be it the meta device
    functional.name2qmap.setdefault("dynamic", functional.create_dynamic_map())


class Nf4(Quantization, Packing):
    """4 bits a weight and a scale for each 64.

    Args:
        targets: see ``by_component``.
        double_quant: keep the scales in 8 bits too: 4.13 bits a weight, not 4.5.
    """

    def __init__(
        self,
        *,
        targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]],
        double_quant: bool,
    ) -> None:
        self.targets, self.double_quant = by_component(targets), double_quant

    def require(self, device: torch.device) -> None:
        """Any device that the library has kernels for, CPUs and NVIDIA's GPUs among them."""

    def quantize(self, component: nn.Module, name: str) -> None:
        pack_layers(component, name, self.targets[name], self)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=self.double_quant, quant_type="nf4"
        )
        tensors = {"weight": packed, "absmax": state.absmax, "code": state.code}
        if state.state2 is not None:
            tensors |= {"offset": state.offset, "absmax2": state.state2.absmax, "code2": state.state2.code}
        return tensors

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return functional.dequantize_4bit(packed["weight"], _state(packed, (math.prod(shape),))).view(shape)

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        if shape[1] % BLOCK:  # rows that share a block: the library's CPU kernels (0.50.2) get their scales wrong
            return frozen_linear(x, self, packed, shape, bias)
        return matmul_4bit(x, packed["weight"], _state(packed, shape), bias=bias)


class Int8(Quantization, Packing):
    """8 bits a weight and a scale for each output.

    Args:
        targets: see ``by_component``.
        threshold: on a GPU, inputs of at least this size are multiplied in 16 bits; 0 for none.
    """

    def __init__(
        self,
        *,
        targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]],
        threshold: Annotated[float, AtLeast(0), Example("6.0, or 0 for none")],
    ) -> None:
        self.targets, self.threshold = by_component(targets), threshold

    def require(self, device: torch.device) -> None:
        """Any device that the library has kernels for, CPUs and NVIDIA's GPUs among them."""

    def quantize(self, component: nn.Module, name: str) -> None:
        pack_layers(component, name, self.targets[name], self)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return {"weight": packed, "scale": scales}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return functional.int8_vectorwise_dequant(packed["weight"], packed["scale"])

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        # "training" is what makes a CPU multiply in the input's precision; weights do not train either way
        state = MatmulLtState()
        state.CB, state.SCB = packed["weight"], packed["scale"]
        state.has_fp16_weights, state.is_training = False, True
        return matmul(x, packed["weight"], state=state, threshold=self.threshold, bias=bias)


def _state(packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> functional.QuantState:
    """How the library describes 4-bit weights."""
    nested = None
    if "code2" in packed:
        nested = functional.QuantState(
            absmax=packed["absmax2"], code=packed["code2"], blocksize=256, dtype=torch.float32
        )
    return functional.QuantState(
        absmax=packed["absmax"],
        shape=torch.Size(shape),
        code=packed["code"],
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
        offset=packed.get("offset"),
        state2=nested,
    )
