"""The layers of a Querying Transformer (BLIP-2, arXiv 2301.12597): a post-norm BERT whose queries also read an image.

Reference: ``transformers`` ``Blip2QFormerModel`` and ``InstructBlipQFormerModel``.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.mlp import FeedForward

EPS = 1e-12


class QFormerEncoder(nn.Module):
    """``(i, m, d), (i, n, c) -> (i, m, d)``: queries see each other, the text if there is one, and every few layers
    the context.

    Args:
        dim: width of the queries and of the text.
        dim_context: width of the context.
        depth: layers.
        num_heads: heads; must divide ``dim``.
        dim_hidden: hidden width of the feed-forward layers.
        cross_attention_every: layers from one cross-attention to the next; the first layer has one.
        reads_text: give the text feed-forward layers of its own. The last layer has none: nothing reads the text there.
        dropout: probability in [0, 1), on attention weights and on each branch.

    Raises:
        CompositionError: E-PLACE when ``cross_attention_every`` is below 1.
    """

    def __init__(
        self,
        dim: int,
        dim_context: int,
        *,
        depth: int,
        num_heads: int,
        dim_hidden: int,
        cross_attention_every: int,
        reads_text: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if cross_attention_every < 1:
            raise CompositionError(
                "E-PLACE",
                f"resampler.cross_attention_every={cross_attention_every}, but layers are counted from 1",
                groups=("resampler",),
                fix="set resampler.cross_attention_every=1 for a look at the image in each layer",
            )
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        layers = nn.ModuleList(
            QFormerLayer(
                dim,
                dim_context if i % cross_attention_every == 0 else None,
                num_heads,
                dim_hidden,
                reads_text and i + 1 < depth,
                dropout,
            )
            for i in range(depth)
        )
        self.layers = cast("list[QFormerLayer]", layers)  # a ModuleList's items are typed as plain modules

    def forward(
        self,
        queries: Float[Tensor, "i m d"],
        context: Float[Tensor, "i n c"],
        context_mask: Bool[Tensor, "i n"],
        query_mask: Bool[Tensor, "i m"] | None = None,
        text: Float[Tensor, "i t d"] | None = None,
        text_mask: Bool[Tensor, "i t"] | None = None,
        log_gate: Float[Tensor, "i n"] | None = None,
    ) -> Float[Tensor, "i m d"]:
        """Masks are True at what is real; without one all of it is. ``log_gate`` is added to the logits of context."""
        m = queries.shape[1]
        x, mask = queries, query_mask
        if text is not None and text_mask is not None:
            x = torch.cat([queries, text], 1)
            seen = text_mask.new_ones(queries.shape[:2]) if query_mask is None else query_mask
            mask = torch.cat([seen, text_mask], 1)
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, m, mask, context, context_mask, log_gate)
        return x[:, :m]


class QFormerLayer(nn.Module):
    """``(i, m + t, d), (i, n, c) -> (i, m + t, d)``; only the first ``m`` positions where no text is read."""

    def __init__(
        self, dim: int, dim_context: int | None, num_heads: int, dim_hidden: int, reads_text: bool, dropout: float
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.rate = dropout
        self.dropout = nn.Dropout(dropout)
        self.self_attn = GroupedQueryAttention(dim, num_heads, num_heads, head_dim, bias=True)
        self.self_norm = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = self.cross_norm = self.text_mlp = self.text_norm = None
        if dim_context is not None:
            self.cross_attn = GroupedQueryAttention(
                dim, num_heads, num_heads, head_dim, dim_context=dim_context, bias=True
            )
            self.cross_norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim, dim_hidden, dim, nn.GELU(), bias=True)
        self.mlp_norm = nn.LayerNorm(dim, eps=EPS)
        if reads_text:
            self.text_mlp = FeedForward(dim, dim_hidden, dim, nn.GELU(), bias=True)
            self.text_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(
        self,
        x: Float[Tensor, "i k d"],
        m: int,
        mask: Bool[Tensor, "i k"] | None,
        context: Float[Tensor, "i n c"],
        context_mask: Bool[Tensor, "i n"],
        log_gate: Float[Tensor, "i n"] | None = None,
    ) -> Float[Tensor, "i _ d"]:
        x = self.self_norm(x + self.dropout(self.self_attn(x, x, mask, self.rate)))
        queries, text = x[:, :m], x[:, m:]
        if self.cross_attn is not None and self.cross_norm is not None:
            read = self.cross_attn(queries, context, context_mask, self.rate, log_gate=log_gate)
            queries = self.cross_norm(queries + self.dropout(read))
        queries = self.mlp_norm(queries + self.dropout(self.mlp(queries)))
        if self.text_mlp is None or self.text_norm is None:
            return queries
        return torch.cat([queries, self.text_norm(text + self.dropout(self.text_mlp(text)))], 1)
