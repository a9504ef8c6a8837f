"""Linear connector that starts at zero, as the head of PaLI (arXiv 2209.06794) and PaliGemma (arXiv 2407.07726).

Reference: ``transformers`` ``PaliGemmaMultiModalProjector``, equal to 1e-5 with its weights; the zeros are those of
``big_vision`` (``head_zeroinit`` of its ViT), whose weights PaliGemma's are.

At the first step every visual token is the zero vector, which the llm's norm leaves at zero: text alone decides. The
weights have a gradient from the first step on, the vision encoder only from the second.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PaliConnector(Stage):
    """``(i, n, d) -> (i, n, dim_out)``: one linear layer with bias, all zero at the start.

    Attributes:
        zero_at_start: distinct tokens become equal ones (zeros) until the first step; that is the published start.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
    """

    zero_at_start = True

    def __init__(self, tokens: TokenSpec, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(tokens.dim, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.proj.out_features, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens.with_features(self.proj(tokens.x))

    def init_weights(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
