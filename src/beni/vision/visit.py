"""What blocks of a Hugging Face encoder are told of one pass, and what they leave: side channels, and kept patches.

The attention modules of the blocks are given a config of their own that names an attention of beni's. It computes what
the module's own attention would, to the last bit, and beside it what the block was told: which tokens are real, and
whether to leave the attention that each of them is paid and its key. What a block is told is an argument of its
``forward``, so a block that is computed again in the backward pass (``training/blocks.py``) is told the same.

A dry run on the meta device says whether the blocks can be visited; nothing is installed where nobody asks.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beni.types import VisualTokens
from beni.vision.base import Service
from beni.vision.probe import Layout

PREFIX = "beni_visit_"
"""Before the name of the attention that a visited module would compute with."""

MASKED = ("sdpa", "eager")
"""Attention that takes an additive mask."""


class Reading:
    """What the attention of one block leaves.

    Attributes:
        cls: it is the attention that the first token pays; that of all tokens otherwise.
        weights: sum over the queries and mean over the heads of the attention to each token ``(b, t)``.
        keys: mean over the heads ``(b, t, k)``.
        calls: how often the block has called its attention.
    """

    def __init__(self, cls: bool) -> None:
        self.cls, self.calls = cls, 0
        self.weights: Float[Tensor, "b t"] | None = None
        self.keys: Float[Tensor, "b t k"] | None = None

    def take(self) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t k"]]:
        """Weights and keys, which are then forgotten: what is computed again must not keep the graph alive.

        Raises:
            RuntimeError: when no attention has left any.
        """
        weights, keys, self.weights, self.keys = self.weights, self.keys, None, None
        if weights is None or keys is None:
            raise RuntimeError("no attention of the encoder has left what was to be read of it")
        return weights, keys


@dataclass(eq=False)
class Visit:
    """One pass through an encoder.

    Attributes:
        places: tokens of the first block's input that go on, prefix included; None for all.
        real: which of those are real; None where all are.
        reading: where the block that is read leaves what it computes; None where nobody asks.
        others: tensors that the first block was given beside its hidden states.
    """

    places: Int[Tensor, "i m"] | None = None
    real: Bool[Tensor, "i m"] | None = None
    reading: Reading | None = None
    others: int = 0


@dataclass(frozen=True, eq=False)
class Told:
    """What one block is told of a pass: see ``Visit``."""

    real: Bool[Tensor, "i m"] | None
    reading: Reading | None


class _Now(threading.local):
    """The pass and the block that this thread is in."""

    visit: Visit | None = None
    told: Told | None = None


NOW = _Now()


@contextmanager
def visiting(visit: Visit | None) -> Iterator[None]:
    """Around a call of an encoder whose blocks can be visited."""
    NOW.visit = visit
    try:
        yield
    finally:
        NOW.visit = None


def install(blocks: Sequence[nn.Module], read: nn.Module | None, implementation: str) -> None:
    """Makes blocks visitable.

    Args:
        blocks: in order; the first one's input is where patches are left out.
        read: the block that leaves its attention and keys; None for none.
        implementation: attention that their modules compute with.
    """
    AttentionInterface.register(PREFIX + implementation, partial(_attend, implementation))
    for block in blocks:
        for module in block.modules():
            config = vars(module).get("config")
            if isinstance(config, PreTrainedConfig):
                own = deepcopy(config)
                own._attn_implementation = PREFIX + implementation
                vars(module)["config"] = own
        # a partial, not a closure: it is copied together with its block
        block.forward = partial(_forward, block)
        tell = partial(_tell, first=block is blocks[0], reads=block is read)
        block.register_forward_pre_hook(tell, with_kwargs=True)


def _tell(
    block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], *, first: bool, reads: bool
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a block, and outside of what is computed again: what it is told becomes an argument."""
    visit = NOW.visit
    if visit is None:
        return None
    if first and visit.places is not None:
        hidden, *others = arguments
        visit.others = sum(isinstance(leaf, Tensor) for leaf in tree_leaves((others, named)))
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        arguments = (hidden[rows, visit.places.to(hidden.device)], *others)
    return arguments, named | {"told": Told(visit.real, visit.reading if reads else None)}


def _forward(block: nn.Module, *arguments: Any, told: Told | None = None, **named: Any) -> Any:
    """A block's own ``forward``, inside which its attention knows what the block was told."""
    NOW.told = told
    try:
        return type(block).forward(block, *arguments, **named)
    finally:
        NOW.told = None


def _attend(
    implementation: str,
    module: nn.Module,
    query: Float[Tensor, "b h t k"],
    key: Float[Tensor, "b g t k"],
    value: Float[Tensor, "b g t v"],
    attention_mask: Tensor | None = None,
    **named: Any,
) -> Any:
    """The attention function of visited modules, as transformers calls it."""
    told = NOW.told
    if told is not None and told.real is not None:
        if attention_mask is not None:  # relative positions: of all patches, in their order
            raise ValueError("the attention of the encoder has a mask of its own")
        bias = torch.zeros(told.real.shape, dtype=query.dtype, device=query.device)
        attention_mask = bias.masked_fill(~told.real, float("-inf"))[:, None, None]
    if told is not None and told.reading is not None:
        reading = told.reading
        reading.calls += 1
        scaling = named.get("scaling") or query.shape[-1] ** -0.5
        asking = query[:, :, :1] if reading.cls else query
        mask = attention_mask if attention_mask is None or not reading.cls else attention_mask[:, :, :1]
        reading.weights = paid(asking, key, mask, scaling, None if reading.cls else told.real)
        reading.keys = key.mean(1)
    return _own(implementation, module)(module, query, key, value, attention_mask, **named)


def _own(implementation: str, module: nn.Module) -> Callable[..., Any]:
    """The attention that a module would call; ``eager`` is a function beside its class."""
    if implementation == "eager":
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS[implementation]


def paid(
    query: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b g t k"],
    mask: Tensor | None,
    scaling: float,
    real: Bool[Tensor, "b q"] | None,
) -> Float[Tensor, "b t"]:
    """The attention that queries pay to each key: summed over the queries, the mean over the heads.

    Head by head: all of them at once would take as much memory as the attention of a whole layer that is kept.

    Args:
        mask: as attention functions of transformers take it, True or 0 where attention is allowed.
        real: False at queries that do not count.
    """
    heads, groups = query.shape[1], key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    total = query.new_zeros(query.shape[0], key.shape[2], dtype=dtype)
    for head in range(heads):
        logits = query[:, head] @ key[:, head * groups // heads].transpose(1, 2) * scaling
        if mask is not None:
            own = mask[:, head if mask.shape[1] > 1 else 0]
            logits = logits.masked_fill(~own, float("-inf")) if own.dtype == torch.bool else logits + own
        weights = logits.softmax(-1, dtype=dtype)
        total = total + (weights if real is None else weights * real[..., None]).sum(1)
    return total / heads


def kept_places(keep: Bool[Tensor, "i n"], prefix: int) -> tuple[Int[Tensor, "i m"], Bool[Tensor, "i m"] | None]:
    """Kept patches -> places of the tokens that go on, the prefix in front, and which are real; None where all are.

    Raises:
        ValueError: when a view keeps nothing.
    """
    counts = keep.sum(1)
    fewest, most = (int(count) for count in counts.aminmax())
    if fewest < 1:
        raise ValueError(f"keep has a view without any patch ({counts.tolist()}), expected at least one of each")
    patches = torch.argsort((~keep).long(), dim=1, stable=True)[:, :most]  # stable: in reading order
    first = torch.arange(prefix, device=keep.device).expand(len(keep), prefix)
    places = torch.cat([first, patches + prefix], 1)
    if fewest == most:
        return places, None
    return places, torch.arange(places.shape[1], device=keep.device) < (counts + prefix)[:, None]


def standing(
    x: Float[Tensor, "i m d"], layout: Layout, visit: Visit | None, keep: Bool[Tensor, "i n"] | None
) -> VisualTokens:
    """The patches where they stand: all on their grid, or those that were kept."""
    if keep is None or visit is None or visit.places is None:
        return VisualTokens.dense(x, layout.grid)
    all_patches = VisualTokens.dense(keep[..., None].to(x.dtype), layout.grid)
    kept = all_patches.gather(visit.places[:, layout.prefix :] - layout.prefix)
    return replace(kept.with_features(x), mask=kept.x[..., 0] > 0)


def side_channels(visit: Visit, layout: Layout, images: int, services: frozenset[Service]) -> dict[str, Tensor]:
    """What the attention of the block that is read has left, prefix included, as fields of visual tokens."""
    if visit.reading is None:
        raise ValueError("side channels were to be taken of a pass in which nothing was read")
    weights, keys = visit.reading.take()
    attn = layout.tokens(weights[..., None], images)[..., 0]
    if not visit.reading.cls:  # the mean over the tokens of a picture that pay it
        attn = attn / (attn.shape[1] if visit.real is None else visit.real.sum(1, keepdim=True))
    return {
        name: tensor for name, tensor in (("attn", attn), ("keys", layout.tokens(keys, images))) if name in services
    }
