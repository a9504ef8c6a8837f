"""Querying Transformer of BLIP-2 (arXiv 2301.12597): learned queries read the visual tokens in every other layer.

Reference: ``transformers`` ``Blip2QFormerModel`` between queries and projection, equal to 1e-5 in fp32 and 1e-10 in
fp64 with its weights; 105,137,664 parameters at the published sizes.
Deviations: the reference sets its queries to zero, which makes all output tokens alike at the start; here they are
drawn from N(0, 0.02), as in BLIP-2's own training. It trains from scratch more slowly than any other resampler: BLIP-2
trains it on image-text pairs first, without an llm.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.nn.qformer import QFormerEncoder
from beni.nn.queries import draw_layers, head_dim_of, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class QFormer(Stage):
    """``(i, n, d) -> (i, num_queries, dim_out)``, whatever n is and whichever of its tokens are padding.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        hidden_size: width of the queries.
        depth: layers.
        num_queries: visual tokens going out (tokens).
        num_heads: heads of both attentions.
        intermediate_size: hidden width of the feed-forward layers.
        cross_attention_every: layers from one look at the visual tokens to the next; the first layer looks.
        dropout: probability in [0, 1), on attention weights and on each branch.

    Raises:
        CompositionError: E-HEADS when ``num_heads`` does not divide ``hidden_size``, E-PLACE when
            ``cross_attention_every`` is below 1.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        hidden_size: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_queries: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        intermediate_size: Annotated[int, AtLeast(1)],
        cross_attention_every: int,
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        head_dim_of(hidden_size, num_heads, "resampler=qformer")
        self.queries = nn.Parameter(torch.empty(num_queries, hidden_size))
        self.encoder = QFormerEncoder(
            hidden_size,
            tokens.dim,
            depth=depth,
            num_heads=num_heads,
            dim_hidden=intermediate_size,
            cross_attention_every=cross_attention_every,
            reads_text=False,
            dropout=dropout,
        )
        self.proj = nn.Linear(hidden_size, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, len(self.queries), self.proj.out_features, "llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        queries = self.queries.to(tokens.x.dtype).expand(tokens.x.shape[0], -1, -1)
        return queried(self.proj(self.encoder(queries, tokens.x, tokens.mask, log_gate=tokens.log_gate)), tokens)

    def init_weights(self) -> None:
        nn.init.normal_(self.queries, std=0.02)
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))
