"""What may stand around a layer of the llm: functions of its hidden states that know which sample each belongs to.

A fusion with layers of its own (Flamingo, arXiv 2204.14198; Llama 3.2's cross-attention) leaves them in the
``Sequence``; a probe or a gate may be put around any llm (``Llm.around_layers``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

Turn = Callable[[Float[Tensor, "i h n dh"], Int[Tensor, "i"]], Float[Tensor, "i h n dh"]]
"""Turns heads ``(i, h, n, dh)`` as rotary positions turn the keys of the positions ``(i,)`` of the flattened pass."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer. Fusion, layout and generation may all have moved positions since the text was
    embedded; ``samples`` and ``columns`` say where each has come from.

    Attributes:
        samples: number of the sample, in the order of the micro-batch, that each position belongs to; -1 at padding.
        columns: number of each real position within its sample, from 0 on; positions that generation adds count on.
        arguments: what else the model hands to the layer (rotary positions, mask or segments, cache), by the names that
            it has for them, which differ from family to family.
        turn: gives keys of one's own the rotary positions of this pass; None for a layer without any.
    """

    samples: Int[Tensor, "b t"]
    columns: Int[Tensor, "b t"]
    arguments: Mapping[str, Any]
    turn: Turn | None = None


Change = Callable[[Float[Tensor, "b t d"], LayerCall], Float[Tensor, "b t d"]]
"""A map from hidden states to hidden states of the same shape."""


Reading = Callable[[Float[Tensor, "b h t dk"], Float[Tensor, "b t h dv"], float], Float[Tensor, "b t h dv"]]
"""From the queries of a layer's attention, what they have read, and the factor that products with keys are multiplied
by, to what they are taken to have read.
"""


@dataclass(frozen=True)
class Heads:
    """Sizes of the attention of an llm's layers.

    Attributes:
        queries: heads of them.
        keys: heads of keys and values.
        width: of each.
    """

    queries: int
    keys: int
    width: int


def unchanged(hidden: Float[Tensor, "b t d"], call: LayerCall) -> Float[Tensor, "b t d"]:
    """The hidden states as they are."""
    return hidden


@dataclass(frozen=True)
class LayerVisitor:
    """What is done to the hidden states around one decoder layer, in every call of it.

    It stands outside of what recomputes the layer's activations: it runs once a forward pass, and what it keeps for the
    backward pass stays. A change that keeps more than a few hidden states belongs into a module of
    ``Fusion.layers()``, which has a recomputation, and a unit of sharding, of its own.

    Attributes:
        before: changes what the layer is given.
        after: changes what the layer gives.
        within: changes what its attention reads, in the layer and with it computed again; None leaves attention alone.
            Only llms that say so hand their queries over (``Capabilities.lends_queries``).
    """

    before: Change = unchanged
    after: Change = unchanged
    within: Reading | None = None
