"""Cross-attention with grouped key/value heads (GQA, arXiv 2305.13245), and attention with gates on its keys."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.nn.gates import is_open, widened


def attend(
    q: Float[Tensor, "b h q dh"],
    k: Float[Tensor, "b kv k dh"],
    v: Float[Tensor, "b kv k dv"],
    mask: Bool[Tensor, "b *q k"] | None = None,
    log_gate: Float[Tensor, "b k"] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Float[Tensor, "b h q dv"]:
    """Queries attend to keys, none of which is before another.

    Args:
        mask: True where a key may be attended to, by all queries alike or by each.
        log_gate: is added to the logits of each key. Where that closes all that a row may attend to, its queries read
            zeros: a closed token has no influence, also where nothing else is left.
        dropout: probability in [0, 1), on the attention weights.
        scale: what products are multiplied by; one over the root of the heads' width when None.
    """
    shown = None if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    gqa = q.shape[1] != k.shape[1]
    if log_gate is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=shown, dropout_p=dropout, scale=scale, enable_gqa=gqa)
    factor = float(q.shape[-1] ** -0.5) if scale is None else scale
    wide = widened(q, k, v, log_gate[:, None], factor)
    read = F.scaled_dot_product_attention(*wide, attn_mask=shown, dropout_p=dropout, scale=factor, enable_gqa=gqa)
    legible = is_open(log_gate)[:, None, None, :] if shown is None else is_open(log_gate)[:, None, None, :] & shown
    return read[..., : v.shape[-1]].masked_fill(~legible.any(-1, keepdim=True), 0.0)


class GroupedQueryAttention(nn.Module):
    """Queries attend to a context: ``(b, q, d), (b, k, c) -> (b, q, e)``, e being d where nothing else is said.

    ``num_kv_heads = 1`` is multi-query, ``num_kv_heads = num_heads`` is ordinary multi-head attention. The inner
    width ``num_heads * head_dim`` need not equal ``dim``.

    Args:
        dim: width of the queries.
        dim_context: width of the context; that of the queries when None.
        dim_out: width of the result; that of the queries when None.
        bias: give the four projections biases.
        head_norm: width of a head -> the norm put on each head of queries and of keys.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dim_context: int | None = None,
        dim_out: int | None = None,
        bias: bool = False,
        head_norm: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        dim_context = dim if dim_context is None else dim_context
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim_context, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim_context, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, dim if dim_out is None else dim_out, bias=bias)
        self.q_norm, self.k_norm = head_norm(head_dim), head_norm(head_dim)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        context: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k"] | None = None,
        dropout: float = 0.0,
        values: Float[Tensor, "b k c"] | None = None,
        log_gate: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b q e"]:
        """``mask`` is True where a context position may be attended to; ``values`` are read where they differ from the
        context that gives the keys; ``log_gate`` is as in ``attend``.
        """
        q = self.q_norm(self._heads(self.q_proj(queries), self.num_heads))
        k = self.k_norm(self._heads(self.k_proj(context), self.num_kv_heads))
        v = self._heads(self.v_proj(context if values is None else values), self.num_kv_heads)
        out = attend(q, k, v, mask, log_gate, dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)  # (b, t, h*dh) -> (b, h, t, dh)
