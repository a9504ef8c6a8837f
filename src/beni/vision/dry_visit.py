"""Whether the blocks of an encoder can be visited (``visit.py``), found out by a dry run on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from beni.errors import reason
from beni.vision.probe import Layout
from beni.vision.visit import MASKED, Reading, Visit

IMAGES = 2
"""Pictures of a dry run: a model that packs them would hide it with one."""

Run = Callable[[Visit], list[Tensor]]
"""A pass of ``IMAGES`` pictures -> the hidden states that are read."""


class NotVisited(Exception):
    """Says what an encoder lacks."""


def key_width(run: Run, layout: Layout) -> int:
    """Width of the keys of the attention that is read.

    Raises:
        NotVisited: when the block that is read does not pay attention from all tokens to all, through transformers'
            table of attention functions.
    """
    reading = Reading(cls=layout.prefix > 0)
    _tried(run, Visit(reading=reading))
    if reading.calls != 1:
        raise NotVisited(
            f"its last block computes {reading.calls} attentions by transformers' table of attention functions, not 1"
        )
    weights, keys = reading.take()
    packed = (1, IMAGES * layout.n)
    if tuple(weights.shape) not in ((IMAGES, layout.n), packed) or (reading.cls and weights.shape == packed):
        raise NotVisited(f"its attention is not one over the {layout.n} tokens of an image")
    return keys.shape[-1]


def states_before(run: Run, layout: Layout, implementation: str) -> list[bool]:
    """Whether each hidden state that is read is from before the first block, where no patch is left out yet.

    Raises:
        NotVisited: when patches cannot be left out.
    """
    if implementation not in MASKED:
        raise NotVisited(f"vision.attn_implementation={implementation} takes no mask, as {' and '.join(MASKED)} do")
    m = layout.n - 1
    visit = Visit(torch.arange(m).expand(IMAGES, m), torch.ones(IMAGES, m, dtype=torch.bool))
    states = _tried(run, visit)
    if visit.others:
        raise NotVisited("its blocks are told of the places of patches by other tensors than their hidden states")
    full, fewer = (IMAGES, layout.n), (IMAGES, m)
    if any(x.ndim != 3 or tuple(x.shape[:2]) not in (full, fewer) for x in states) or states[0].shape[1] != m:
        raise NotVisited(f"with {m} of {layout.n} tokens its features are {[tuple(x.shape) for x in states]}")
    return [x.shape[1] == layout.n for x in states]


def _tried(run: Run, visit: Visit) -> list[Tensor]:
    try:
        return run(visit)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise NotVisited(f"its blocks cannot be visited: {reason(error)}") from error
