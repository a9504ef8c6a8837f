"""Cross-attention with grouped key/value heads (GQA, arXiv 2305.13245)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class GroupedQueryAttention(nn.Module):
    """Queries attend to a context: ``(b, q, d), (b, k, d) -> (b, q, d)``.

    ``num_kv_heads = 1`` is multi-query, ``num_kv_heads = num_heads`` is ordinary multi-head attention. The inner
    width ``num_heads * head_dim`` need not equal ``dim``. No biases.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        context: Float[Tensor, "b k d"],
        mask: Bool[Tensor, "b k"] | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "b q d"]:
        """``mask`` is True where a context position may be attended to."""
        q = self._heads(self.q_proj(queries), self.num_heads)
        k = self._heads(self.k_proj(context), self.num_kv_heads)
        v = self._heads(self.v_proj(context), self.num_kv_heads)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=dropout if self.training else 0.0,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)  # (b, t, h*dh) -> (b, h, t, dh)

    def flops(self, q: int, k: int) -> int:
        """Forward FLOPs of ``q`` queries on ``k`` context positions."""
        dim, inner, kv = self.q_proj.in_features, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return 4 * q * dim * inner + 4 * k * dim * kv + 4 * q * k * inner
