"""The gated cross-attention block that stands in front of a decoder layer (Flamingo, arXiv 2204.14198; IDEFICS, arXiv
2306.16527; Llama 3.2, arXiv 2407.21783).

``x + tanh(a) attention(norm(x), visual)``, then ``x + tanh(b) mlp(norm(x))``. Both gates start at 0, so that a fresh
block changes no bit. References: ``transformers`` ``IdeficsGatedCrossAttentionLayer`` and
``MllamaCrossAttentionDecoderLayer``, equal where every position sees an image. Deviation: a position that sees none
stays as it is; in both its feed-forward half, or all of it, changes.

No projection has a name that adapters of an llm look for by its end (``q_proj``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.fusion.media import Media, Pairs, Sight
from beni.fusion.own_layers import OwnLayers
from beni.nn.attention import attend
from beni.nn.norms import RMSNorm, make_norm
from beni.nn.queries import draw_layers
from beni.types import LayerCall, LayerVisitor


class CrossAttention(nn.Module):
    """What positions ``(b, t, d)`` read of the keys and values of what they see.

    Args:
        dim: width of the positions and of the visual tokens.
        head_norm: an RMSNorm on each head of queries and keys.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, head_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.xq = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.xk = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.xv = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.xo = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.q_norm, self.k_norm = ((RMSNorm(head_dim) if head_norm else nn.Identity()) for _ in range(2))

    def pairs(self, x: Float[Tensor, "i n d"]) -> Pairs:
        """Keys and values of visual tokens."""
        k, v = (linear(x).unflatten(-1, (self.num_kv_heads, -1)) for linear in (self.xk, self.xv))
        return self.k_norm(k).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Float[Tensor, "b t d"], pairs: Pairs, sight: Sight) -> Float[Tensor, "b t d"]:
        q = self.q_norm(self.xq(x).flatten(0, 1).unflatten(-1, (self.num_heads, -1)))
        k, v = (sight.of_groups(part) for part in pairs)
        read = attend(sight.gather(q), k, v, sight.mask, sight.log_gate)
        return self.xo(sight.scatter(read).flatten(1)).unflatten(0, x.shape[:2])


class Mlp(nn.Module):
    """``(..., d) -> (..., d)``: two matrices with GELU between them, or three (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, dim: int, inner: int, kind: Literal["gelu", "swiglu"]) -> None:
        super().__init__()
        self.x_up, self.x_down = nn.Linear(dim, inner, bias=False), nn.Linear(inner, dim, bias=False)
        self.x_gate = nn.Linear(dim, inner, bias=False) if kind == "swiglu" else None

    def forward(self, x: Float[Tensor, "*a d"]) -> Float[Tensor, "*a d"]:
        up = self.x_up(x)
        return self.x_down(F.gelu(up) if self.x_gate is None else F.silu(self.x_gate(x)) * up)


class GatedCrossAttention(nn.Module):
    """``(b, t, d) -> (b, t, d)``: cross-attention then feed-forward, both pre-norm, residual and gated.

    Args:
        norm: in front of both halves.
        gates: numbers a half has: one, or one a channel.
    """

    def __init__(self, attention: CrossAttention, mlp: Mlp, norm: Literal["layernorm", "rmsnorm"], gates: int) -> None:
        super().__init__()
        dim = attention.xq.in_features
        self.attention_norm, self.mlp_norm = make_norm(norm, dim), make_norm(norm, dim)
        self.attention, self.mlp = attention, mlp
        self.attention_gate, self.mlp_gate = (nn.Parameter(torch.empty(gates)) for _ in range(2))

    def forward(
        self, hidden: Float[Tensor, "b t d"], visual: Float[Tensor, "i n d"], sight: Sight, media: Media, index: int
    ) -> Float[Tensor, "b t d"]:
        """Hidden states in front of layer ``index``, changed where they see an image."""
        dtype = self.attention_gate.dtype
        pairs = media.once(index, lambda: self.attention.pairs(visual.to(dtype)))
        read = self.attention(self.attention_norm(hidden.to(dtype)), pairs, sight)
        seeing = hidden + (self.attention_gate.tanh() * read).to(hidden.dtype)
        made = self.mlp(self.mlp_norm(seeing.to(dtype)))
        seeing = seeing + (self.mlp_gate.tanh() * made).to(hidden.dtype)
        return torch.where(sight.sees[..., None], seeing, hidden)

    def init_weights(self) -> None:
        """Torch's own draw for linear layers; gates are closed."""
        draw_layers(self, lambda weight: nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5))
        nn.init.zeros_(self.attention_gate)
        nn.init.zeros_(self.mlp_gate)


def make_block(
    dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    inner: int,
    norm: Literal["layernorm", "rmsnorm"],
    head_norm: bool,
    mlp: Literal["gelu", "swiglu"],
    gates: int,
) -> GatedCrossAttention:
    """A block of such sizes, not drawn yet; ``inner`` is the hidden width of the feed-forward half."""
    attention = CrossAttention(dim, num_heads, num_kv_heads, head_dim, head_norm)
    return GatedCrossAttention(attention, Mlp(dim, inner, mlp), norm, gates)


def block_maker(
    dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    expansion: float,
    norm: Literal["layernorm", "rmsnorm"],
    head_norm: bool,
    mlp: Literal["gelu", "swiglu"],
    gate: Literal["scalar", "channel"],
) -> Callable[[], GatedCrossAttention]:
    """What makes blocks as a fusion's values ask for them.

    Raises:
        CompositionError: E-HEADS when ``num_kv_heads`` does not divide ``num_heads``.
    """
    if num_heads % num_kv_heads:
        raise CompositionError(
            "E-HEADS",
            f"fusion.num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}",
            groups=("fusion",),
            fix=f"set fusion.num_kv_heads to 1 or {num_heads}",
        )
    inner, gates = max(1, round(expansion * dim)), 1 if gate == "scalar" else dim
    return partial(make_block, dim, num_heads, num_kv_heads, head_dim, inner, norm, head_norm, mlp, gates)


def readers(blocks: OwnLayers, media: Media) -> dict[int, LayerVisitor]:
    """What stands in front of the llm's layers: the block of each reads what its positions see."""

    def read(index: int, hidden: Float[Tensor, "b t d"], call: LayerCall) -> Float[Tensor, "b t d"]:
        return blocks[str(index)](hidden, media.visual.x, media.sight(call), media, index)

    return {int(name): LayerVisitor(before=partial(read, int(name))) for name in blocks}


def draw_blocks(blocks: OwnLayers) -> None:
    """Draws the weights of every block."""
    for block in blocks.values():
        cast(GatedCrossAttention, block).init_weights()
