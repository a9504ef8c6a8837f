"""Counting FLOPs on the meta device: no weights, no time, and attention included.

torch's counter reports zero for scaled-dot-product attention on CPU (no kernel is registered for its flash path); on
the meta device it sees the products themselves once the attention is eager, or is told to use them. What has no values
there is taken to be real: a mask chooses all.

Of a grouped convolution's backward pass torch counts the gradient of the weight as if there were one group (measured on
a depthwise layer of ``resampler=ldp``: 6.8 times the forward pass instead of 3). Each gradient takes as many products
as the forward pass does, and so they are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.experimental._config as symbols
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs (2 x multiply-accumulates of matmuls, convolutions, attention products) of ``run()``."""
    with torch.no_grad(), counting() as counter:
        run()
    return counter.get_total_flops()


def count_training_flops(forward: Callable[[], Iterable[Tensor]]) -> tuple[int, int]:
    """FLOPs of ``forward()``, and of it and the backward pass from those of its results that want a gradient.

    Gradients are left in the parameters.
    """
    with torch.enable_grad(), counting() as counter:
        results = [result for result in forward() if result.requires_grad]
        before = counter.get_total_flops()
        torch.autograd.backward(results, [torch.empty_like(result) for result in results])
    return before, counter.get_total_flops()


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts inside the block, attention as the products that it is made of."""
    convolution: Any = torch.ops.aten.convolution_backward
    counter = FlopCounterMode(display=False, custom_mapping={convolution: _convolution_backward})
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operator, which the counter does not know
    try:
        with without_values(), sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def without_values() -> Iterator[None]:
    """Around a run on the meta device: masks count as True everywhere, so that tokens can be chosen by them."""
    config: Any = symbols
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


def _convolution_backward(gradient: list[int], x: list[int], weight: list[int], *rest: Any, **_: Any) -> int:
    """Args: shapes of the output's gradient, the input and the weight; the others of aten's operator."""
    transposed: bool = rest[4]
    wanted: Sequence[bool] = rest[7]  # gradients of the input and of the weight
    return sum(wanted[:2]) * conv_flop_count(x, weight, gradient, transposed)
