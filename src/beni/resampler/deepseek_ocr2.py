"""DeepSeek-OCR 2's encoder of visual causal flow (arXiv 2601.20552): queries behind the tokens, each sees those before.

Reference: the queries of ``transformers`` ``DeepseekOcr2VisionModel`` and its ``DeepseekOcr2VisionEncoder``, equal to
1e-5 in fp32 and 1e-10 in fp64 with their weights. It is an llm of the Qwen2 family (published: that of 0.5B, from its
weights) on a sequence without text: the visual tokens see each other, a query sees them and the queries up to itself.
Deviations: any number of visual tokens, padding among them, with one set of queries, where the reference has one for
768 pixels and one for 1024. Places are counted along the sequence, so a token that gates close would count; gates are
not read.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast, AtMost, Example
from beni.errors import CompositionError
from beni.nn.mlp import SwiGLU
from beni.nn.norms import RMSNorm
from beni.nn.positions import rotated, rotations
from beni.nn.queries import check_kv_heads, draw_layers, head_dim_of, queried, queried_spec
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=deepseek_ocr2"


class DeepSeekOcr2(Stage):
    """``(i, n, d) -> (i, num_queries, hidden_size)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens.
        hidden_size: width to work at; ``auto`` takes that of the tokens, others are reached by a matrix.
        depth: layers.
        num_queries: visual tokens going out (tokens).
        num_heads: query heads; must divide the width into heads of an even number of channels.
        num_kv_heads: key/value heads; must divide ``num_heads``.
        intermediate_size: width of the gated feed-forward layers.
        rope_theta: base of the rotations.

    Raises:
        CompositionError: E-HEADS when ``num_heads`` does not divide the width, leaves heads of an odd one, or is not
            divided by ``num_kv_heads``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        hidden_size: Annotated[int, AtLeast(1)] | Literal["auto"],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_queries: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        num_kv_heads: Annotated[int, AtLeast(1)],
        intermediate_size: Annotated[int, AtLeast(1)],
        rope_theta: Annotated[float, Above(0), Example("1000000")],
    ) -> None:
        super().__init__()
        check_kv_heads(num_heads, num_kv_heads)
        dim = tokens.dim if isinstance(hidden_size, str) else hidden_size
        self.head_dim, self.rope_theta = head_dim_of(dim, num_heads, PART), rope_theta
        if self.head_dim % 2:
            raise CompositionError(
                "E-HEADS",
                f"{PART} turns pairs of channels, and num_heads={num_heads} leaves heads of {self.head_dim}",
                groups=("resampler",),
                fix="set resampler.num_heads so that the width over it is even",
            )
        self.proj = nn.Identity() if dim == tokens.dim else nn.Linear(tokens.dim, dim, bias=False)
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        layers = nn.ModuleList(
            FlowLayer(dim, num_heads, num_kv_heads, self.head_dim, intermediate_size) for _ in range(depth)
        )
        self.layers = cast("list[FlowLayer]", layers)  # a ModuleList's items are typed as plain modules
        self.norm = RMSNorm(dim)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, *self.queries.shape, tokens.space)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        m = len(self.queries)
        places = tokens.mask.long().cumsum(1)  # from 1 on; padding is seen by nobody
        behind = places[:, -1:] + torch.arange(1, m + 1, device=places.device)
        angles = rotations(torch.cat([places, behind], 1) - 1, self.head_dim, self.rope_theta)
        seen = F.pad(tokens.mask, (0, m), value=True)[:, None].expand(-1, m, -1).tril(tokens.mask.shape[1])
        queries = self.queries.to(tokens.x.dtype).expand(len(tokens.x), -1, -1)
        x = torch.cat([self.proj(tokens.x), queries], 1)
        for layer in self.layers:
            x = layer(x, angles, tokens.mask, seen)
        return queried(self.norm(x[:, -m:]), tokens)

    def init_weights(self) -> None:
        nn.init.normal_(self.queries, std=self.queries.shape[1] ** -0.5)
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))


class FlowLayer(nn.Module):
    """``(i, n + m, d) -> (i, n + m, d)``: self-attention in two parts, then SwiGLU, both pre-norm and residual."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm, self.mlp_norm = RMSNorm(dim), RMSNorm(dim)
        self.q_proj = nn.Linear(dim, num_heads * head_dim)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.mlp = SwiGLU(dim, hidden, dim)

    def forward(
        self,
        x: Float[Tensor, "i t d"],
        angles: Float[Tensor, "i 1 t dh"],
        mask: Bool[Tensor, "i n"],
        seen: Bool[Tensor, "i m t"],
    ) -> Float[Tensor, "i t d"]:
        """``mask`` says which tokens are real, ``seen`` what each query sees of the whole sequence."""
        normed, n = self.attention_norm(x), mask.shape[1]
        q, k, v = (self._heads(proj(normed)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotated(q, angles), rotated(k, angles)
        gqa = q.shape[1] != k.shape[1]
        among = F.scaled_dot_product_attention(
            q[:, :, :n], k[:, :, :n], v[:, :, :n], attn_mask=mask[:, None, None], enable_gqa=gqa
        )
        behind = F.scaled_dot_product_attention(q[:, :, n:], k, v, attn_mask=seen[:, None], enable_gqa=gqa)
        x = x + self.o_proj(torch.cat([among, behind], 2).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (i, t, h*dh) -> (i, h, t, dh)
