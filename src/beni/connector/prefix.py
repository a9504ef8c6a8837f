"""Prefix connector: each visual token becomes several of the llm's, as in ClipCap (arXiv 2111.09734).

One pooled feature of an image classifier says what a picture shows; mapped to several positions it can say it in
several words. The biases are drawn like text embeddings and the weights start at zero, so that training begins from a
soft prompt that is the same for every picture and moves away from it as far as the pictures differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from beni.config.ranges import Above, AtLeast, Below, Example
from beni.errors import CompositionError
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PrefixConnector(Stage):
    """``(i, n, d) -> (i, n * length, dim_out)``: one linear layer, its output cut into ``length`` tokens.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        length: tokens that each incoming one becomes.
        dropout: probability in [0, 1) on the standardised features.
        out_rms: size of the biases, that of the llm's text embeddings.

    Raises:
        CompositionError: E-TOKENS when ``length`` is below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        length: Annotated[int, AtLeast(1)],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
        out_rms: Annotated[float, Above(0), Example("1.0")],
    ) -> None:
        super().__init__()
        if length < 1:
            raise CompositionError(
                "E-TOKENS",
                f"connector.length={length}, but a visual token becomes at least one",
                groups=("connector",),
                fix="set connector.length=1 or more",
            )
        self.length, self.dim_out, self.out_rms = length, dim_out, out_rms
        self.norm = nn.LayerNorm(tokens.dim, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(tokens.dim, length * dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid = tokens.grid if self.length == 1 else None
        mean = None if tokens.mean is None else tokens.mean * self.length
        return replace(
            tokens, n=tokens.n * self.length, mean=mean, dim=self.dim_out, grid=grid, space="llm", sources=()
        )

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = self.proj(self.dropout(self.norm(tokens.x)))
        grid = tokens.grid if self.length == 1 else None
        each = tokens.map(lambda tensor: tensor.repeat_interleave(self.length, 1), grid)
        x = x.unflatten(-1, (self.length, self.dim_out)).flatten(1, 2)
        return replace(each, x=x, size=each.size / self.length)

    def init_weights(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.normal_(self.proj.bias, std=self.out_rms)
