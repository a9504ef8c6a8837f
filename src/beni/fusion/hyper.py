"""Hyper attention: some layers of the llm read visual tokens with the queries of their own attention (mPLUG-Owl3, arXiv
2408.04840).

A layer gets keys and values of the visual tokens, and no queries, output or feed-forward: what its queries read of
them is mixed, channel by channel, into what its attention has read of the text: ``(1 - s) text + s visual`` with
``s = sigmoid(gate)``, before the layer's own output projection. As in the release of July 2024 all tokens of an image
have the rotary position of the place where it stands (MI-RoPE).

Deviations: the visual tokens have a norm of their own in each layer, where the release has that of the layer; gates
start nearly closed (``gate_init``), there at 0, which halves what is read of the text. No implementation can be loaded;
the result is derived anew in float64 by tests/unit/fusion/test_hyper.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost, Example
from beni.fusion.base import Decoder
from beni.fusion.marked import MarkedFusion
from beni.fusion.media import Media, Sight
from beni.nn.attention import attend
from beni.nn.norms import RMSNorm
from beni.nn.queries import draw_layers
from beni.types import Heads, LayerCall, LayerVisitor, TokenSpec

Keys = tuple[Float[Tensor, "i kv n dh"], Float[Tensor, "i kv n dh"], Float[Tensor, "h dh"]]
"""Keys and values of visual tokens, and how much of what they give is taken."""


class HyperFusion(MarkedFusion):
    """The embeddings ``(b, t, d)`` as they are; layers ``first``, ``first + every``, ... read visual tokens too.

    Args:
        tokens: spec of the visual tokens.
        dim: width of the llm.
        every: layers of the llm from one that reads visual tokens to the next.
        first: number of the first, from 0 on.
        gate_init: the gates at first; -4 takes 1.8 % of what is read of an image, 0 (mPLUG-Owl3's) a half.
        positions: ``image`` turns the keys of an image to the rotary position of its place, ``none`` does not.
        sees: a position sees the ``latest`` image before it, or ``all`` before it.

    Raises:
        CompositionError: E-ATTN, by ``install``, when the llm has no attention; E-PLACE when it has no layer ``first``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim: int,
        *,
        every: Annotated[int, AtLeast(1)],
        first: Annotated[int, AtLeast(0)],
        gate_init: Annotated[float, AtLeast(-20), AtMost(20), Example("-4")],
        positions: Literal["image", "none"],
        sees: Literal["latest", "all"],
    ) -> None:
        super().__init__(dim, every, first, sees)
        self.gate_init, self.positions = gate_init, positions

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset(int(name) for name in self.blocks)

    def block(self, llm: Decoder) -> nn.Module:
        return HyperKeys(llm.hidden_size, llm.heads())

    def visitors(self, media: Media) -> Mapping[int, LayerVisitor]:
        readers = {int(name): Reader(int(name), partial(self._keys, int(name), media), media) for name in self.blocks}
        return {index: LayerVisitor(before=reader.prepare, within=reader.read) for index, reader in readers.items()}

    def _keys(self, index: int, media: Media, call: LayerCall) -> Keys:
        keys, values, share = self.blocks[str(index)](media.visual.x)
        if self.positions == "image" and call.turn is not None:
            keys = call.turn(keys, media.places(call))
        return keys, values, share

    def draw(self) -> None:
        for block in self.blocks.values():
            draw_layers(block, lambda weight: nn.init.normal_(weight, std=weight.shape[1] ** -0.5))
            nn.init.constant_(cast(HyperKeys, block).gate, self.gate_init)


class Reader:
    """What one layer does in one forward pass, and in those of a generation: keys in front of it, reading within."""

    def __init__(self, index: int, keys: Callable[[LayerCall], Keys], media: Media) -> None:
        self._index, self._make, self._media = index, keys, media
        self._ready: tuple[Keys, Sight] | None = None

    def prepare(self, hidden: Float[Tensor, "b t d"], call: LayerCall) -> Float[Tensor, "b t d"]:
        """Makes what ``read`` needs; the hidden states stay as they are."""
        keys = self._media.once(self._index, lambda: self._make(call))
        self._ready = keys, self._media.sight(call)
        return hidden

    def read(
        self, query: Float[Tensor, "b h t dk"], read: Float[Tensor, "b t h dv"], scaling: float
    ) -> Float[Tensor, "b t h dv"]:
        """What attention has read of the text, with what it reads of images mixed in where any is seen."""
        if self._ready is None:
            raise ValueError("hyper attention was asked to read before its layer was called")
        (k, v, share), sight = self._ready
        k, v, share = (x.to(query.dtype) for x in (k, v, share))
        queries = sight.gather(query.transpose(1, 2).flatten(0, 1))
        seen = attend(queries, sight.of_groups(k), sight.of_groups(v), sight.mask, sight.log_gate, scale=scaling)
        mixed = (1 - share) * read + share * sight.scatter(seen).view_as(read)
        return torch.where(sight.sees[..., None, None], mixed.to(read.dtype), read)


class HyperKeys(nn.Module):
    """``(i, n, d)`` -> keys and values ``(i, kv, n, dh)`` for one layer, and its shares ``(h, dh)``."""

    def __init__(self, dim: int, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(dim)
        self.xk, self.xv = (nn.Linear(dim, heads.keys * heads.width) for _ in range(2))
        self.gate = nn.Parameter(torch.empty(heads.queries * heads.width))

    def forward(self, visual: Float[Tensor, "i n d"]) -> Keys:
        x = self.norm(visual.to(self.gate.dtype))
        k, v = (linear(x).unflatten(-1, (self.heads.keys, -1)).transpose(1, 2) for linear in (self.xk, self.xv))
        return k, v, self.gate.sigmoid().view(self.heads.queries, -1)
