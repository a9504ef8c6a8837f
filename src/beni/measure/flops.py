"""Counting forward FLOPs on the meta device: no weights, no time, and attention included.

torch's counter reports zero for scaled-dot-product attention on CPU (no kernel is registered for its flash path); on
the meta device it sees the products themselves once the attention is eager, which is how callers must build the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs (2 x multiply-accumulates of matmuls, convolutions, attention products) of ``run()``."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()
