"""No quantization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from beni.nn.linear import Targets
from beni.quantization.base import Quantization


class NoQuantization(Quantization):
    """All weights as they are."""

    targets: Mapping[str, Targets] = {}

    def require(self, device: torch.device) -> None:
        """Any device will do."""

    def quantize(self, component: nn.Module, name: str) -> None:
        """Nothing."""
