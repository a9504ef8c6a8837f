"""What visitors do inside of attention (``LayerVisitor.within``), called by beni's own attentions in either layout.

The readings travel in the plan of the row, an argument of the layer, so that the backward pass finds them where a layer
is computed again. Which layer an attention belongs to it says itself (``layer_idx``); a probe checks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from beni.llm.dense_attention import scale_of
from beni.types import LayerVisitor, Reading

Readings = Mapping[int, tuple[Reading, ...]]
"""Number of a layer -> what is done to what its attention reads, one after another."""


def readings_of(visitors: Iterable[Mapping[int, LayerVisitor]]) -> Readings:
    """The readings of several mappings of visitors, for each layer that of the last mapping first, the innermost."""
    found: dict[int, tuple[Reading, ...]] = {}
    for mapping in visitors:
        for index, visitor in mapping.items():
            if visitor.within is not None:
                found[index] = (visitor.within, *found.get(index, ()))
    return found


@torch.compiler.disable  # what is read within a layer is found out by the visitor before it
def reread(
    module: Any,
    readings: Readings,
    query: Float[Tensor, "b h t dk"],
    read: Float[Tensor, "b t h dv"],
    scaling: float | None,
) -> Float[Tensor, "b t h dv"]:
    """What the attention ``module`` has read, as visitors of its layer change it."""
    if not readings:
        return read
    own, scale = readings.get(module.layer_idx, ()), scale_of(query, scaling)
    return reduce(lambda so_far, reading: reading(query, so_far, scale), own, read)
