"""Gemma 3n's embedder: RMSNorm, one matrix to the llm's width, RMSNorm without weights, so that each token has RMS 1.

Reference: ``transformers`` ``Gemma3nMultimodalEmbedder`` on features, equal to 1e-5 in fp32 and 1e-10 in fp64 with its
weights (Google, 2025). There the features are multiplied by the root of their width first, which the norm takes out
again, and words of the encoder's own vocabulary have a table, which only audio uses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.nn.norms import RMSNorm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

EPS = 1e-6


class Gemma3nConnector(Stage):
    """``(i, n, d) -> (i, n, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        init_std: standard deviation of the normal draw of the matrix.
    """

    def __init__(
        self, tokens: TokenSpec, dim_out: int, *, init_std: Annotated[float, AtLeast(0), Example("0.02")]
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.norm = RMSNorm(tokens.dim, EPS)
        self.proj = nn.Linear(tokens.dim, dim_out, bias=False)
        self.out_norm = nn.RMSNorm(dim_out, EPS, elementwise_affine=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.proj.out_features, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens.with_features(self.out_norm(self.proj(self.norm(tokens.x))))

    def init_weights(self) -> None:
        reset_norms(self)
        nn.init.normal_(self.proj.weight, std=self.init_std)
