"""The schedule: which samples make up which optimizer step, as a pure function.

Nothing is stored and nothing is drawn along the way: ``(seed, step)`` alone gives the samples of a step. So data state
is one number, resuming is exact at any world size and worker count, and two runs with one seed see the same samples in
the same order whatever their model. Epochs follow each other without a gap: a step may span the border of two.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from beni.errors import ConfigError
from beni.nn.streams import numpy_stream


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Permutation of the ``size`` samples in this epoch, read-only."""
    order = numpy_stream(seed, "data.order", epoch).permutation(size)
    order.flags.writeable = False  # callers share the cached array
    return order


def step_samples(seed: int, step: int, size: int, batch_size: int) -> list[tuple[int, int]]:
    """The ``batch_size`` samples of optimizer step ``step`` (from 0) as (epoch, index), in order."""
    samples = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, size)
        samples.append((epoch, int(epoch_order(seed, epoch, size)[place])))
    return samples


def micro_batches(
    seed: int, step: int, size: int, batch_size: int, world: int, accumulation: int
) -> list[list[list[tuple[int, int]]]]:
    """Step ``step`` as ``[rank][micro-batch] -> samples``; together they are exactly ``step_samples``.

    Raises:
        ConfigError: when the step has fewer samples than ranks times micro-batches.
    """
    parts = world * accumulation
    if batch_size < parts:
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be divided over {world} ranks x train.accumulation={accumulation}; "
            f"set train.batch_size to at least {parts}"
        )
    samples = step_samples(seed, step, size, batch_size)
    cut = [samples[part::parts] for part in range(parts)]
    return [cut[rank * accumulation : (rank + 1) * accumulation] for rank in range(world)]
