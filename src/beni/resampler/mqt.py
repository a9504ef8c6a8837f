"""Matryoshka Query Transformer (arXiv 2405.19315): of many queries the first few can be had without the others.

Reference: ``Resampler`` in ``multimodal_projector/builder.py`` of the release. No class of it can be loaded, so the
tests assemble it from ``torch.nn.MultiheadAttention``: equal to 1e-5 in fp32 and 1e-10 in fp64.
Queries do not see each other, so what the first m of them read is the same however many follow. A model trained with
``nested`` numbers of them, one drawn for each sample, can be asked with any (the paper's second stage).
Deviations: the released code gives the attention the positions alone as keys, so where it looks is the same for every
image; ``key_content`` adds the patches to the keys, and without it the release is reproduced. Any grid, not only a
square one, and positions by place where there is no grid.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.positions import positions_at, sincos_table
from beni.nn.queries import centres, draw_layers, draw_stacked, head_dim_of, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import Nested, TokenSpec, VisualTokens

EPS = 1e-6


class Mqt(Stage):
    """``(i, n, d) -> (i, num_queries, dim_out)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens, at whose width the attention works.
        dim_out: width of the llm.
        max_queries: learned queries, a square number.
        num_queries: how many of them, from the first on, are used (tokens), at most ``max_queries``.
        nested: numbers of which training draws one for each sample; [] always uses ``num_queries``.
        num_heads: heads; must divide the width of the tokens.
        key_content: let the keys show the patches, not their positions alone.

    Raises:
        CompositionError: E-SQUARE when ``max_queries`` is no square, E-TOKENS when ``num_queries`` is not one of them,
            E-HEADS when ``num_heads`` does not divide the width, E-DIM when 4 does not.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        max_queries: Annotated[int, AtLeast(1)],
        num_queries: Annotated[int, AtLeast(1)],
        nested: list[Annotated[int, AtLeast(1)]],
        num_heads: Annotated[int, AtLeast(1)],
        key_content: bool,
    ) -> None:
        super().__init__()
        dim = tokens.dim
        self.side = math.isqrt(max_queries)
        if self.side < 1 or self.side**2 != max_queries:
            raise CompositionError(
                "E-SQUARE",
                f"resampler.max_queries={max_queries} queries do not fill a square grid",
                groups=("resampler",),
                fix=f"set resampler.max_queries={max(1, self.side) ** 2}",
            )
        self.numbers = (num_queries, *nested)
        if wrong := [number for number in self.numbers if not 1 <= number <= max_queries]:
            raise CompositionError(
                "E-TOKENS",
                f"{wrong[0]} of resampler.max_queries={max_queries} queries cannot be used",
                groups=("resampler",),
                fix=f"set resampler.num_queries and resampler.nested to 1..{max_queries}",
            )
        if nested:
            self.nested = Nested(len(nested), every=False)
        head_dim = head_dim_of(dim, num_heads, "resampler=mqt")
        if dim % 4:
            raise CompositionError(
                "E-DIM",
                f"resampler=mqt splits the width of the visual tokens into four parts, which {dim} does not allow",
                groups=("vision", "resampler"),
                fix="set resampler=perceiver",
            )
        self.key_content = key_content
        self.queries = nn.Parameter(torch.empty(max_queries, dim))
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attention = GroupedQueryAttention(dim, num_heads, num_heads, head_dim, bias=True)
        self.proj = nn.Linear(dim, dim_out, bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, self.numbers[tokens.scale], self.proj.out_features, "llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x, numbers = tokens.x, [self.numbers[scale] for scale in context.scales or (0,) * len(tokens.x)]
        m = max(numbers)
        table = sincos_table((self.side, self.side), x.shape[2], x.device)
        queries = self.query_norm(self.queries[:m] + table.flatten(1).T[:m].to(x.dtype)).expand(len(x), -1, -1)
        positions = positions_at(table, tokens)
        keys = self.key_norm(x + positions if self.key_content else positions).expand(len(x), -1, -1)
        read = self.attention(queries, keys, tokens.mask, values=self.value_norm(x), log_gate=tokens.log_gate)
        made = queried(self.proj(read), tokens, centres(self.side, x.device)[:m])
        if set(numbers) == {m}:
            return made
        own = torch.tensor(numbers, device=x.device)[:, None]
        mask = torch.arange(m, device=x.device) < own
        size = made.size * mask
        return replace(made, mask=mask, size=size * (made.size.sum(1, keepdim=True) / size.sum(1, keepdim=True)))

    def init_weights(self) -> None:
        nn.init.trunc_normal_(self.queries, std=0.02)
        draw_layers(self, lambda weight: nn.init.trunc_normal_(weight, std=0.02))
        draw_stacked(self.attention)
        nn.init.normal_(self.proj.weight, std=self.proj.out_features**-0.5)
