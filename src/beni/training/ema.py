"""An exponential moving average of the weights that train (arXiv 1703.01780; studied in 2411.18704).

After each step ``average = decay * average + (1 - decay) * weight``, beginning with the initial weights. The average is
what is scored and exported; training goes on with the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from beni.distributed.fsdp import reshard
from beni.training.trainable import named_trainable


class Average:
    """Averages of the parameters that train when it is made, each like its parameter in device, dtype and sharding.

    Args:
        decay: in (0, 1); 0 keeps no average, and every method then does nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay) if decay else None
        self._weights = dict(named_trainable(model)) if decay else {}
        self.tensors = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def begin(self) -> None:
        """Begins anew, with the weights as they are."""
        for average, weight in zip(local(self.tensors.values()), local(self._weights.values()), strict=True):
            average.copy_(weight)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step."""
        if self._update is not None:
            self._update(local(self.tensors.values()), local(self._weights.values()), 0)

    @contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """The model computes with the average inside the block, and with its weights after it."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges average and weights."""
        if self._update is None:
            return
        reshard(model)  # it would go on with whole weights that an evaluation has left behind
        for average, weight in zip(local(self.tensors.values()), local(self._weights.values()), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each, in the same memory."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
