"""Ovis' visual vocabulary (arXiv 2405.20797): a token is a distribution over visual words, of which each has a vector.

Reference: ``transformers`` ``Ovis2VisionModel``'s head and ``Ovis2VisualEmbeddingTable``, equal to 1e-5 in fp32 and
1e-10 in fp64 with their weights. Deviations: the grid comes with the tokens and need not be square, and zeros
fill up its sides, where the reference fails; ``gumbel`` draws in training alone, from the sample's own noise, and
evaluation takes the likeliest word; the five words there for marks in the text are tokens of the llm here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, Example
from beni.nn.grid import grid_of, regrid, space_to_depth
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=ovis"


class Ovis(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, dim_out)``, sides rounded up.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, that of the vectors.
        r: rows and columns of a block (tokens) that is read side by side; zeros fill up sides that it does not divide.
        vocabulary: visual words.
        tokenize: what a token is: ``softmax`` the mean of the vectors under its distribution; ``argmax`` that of the
            likeliest word, ``gumbel`` in training that of one drawn, both with the gradient of the distribution.
        init_std: standard deviation of the normal draws of both matrices.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        r: Annotated[int, AtLeast(1)],
        vocabulary: Annotated[int, AtLeast(1)],
        tokenize: Literal["softmax", "argmax", "gumbel"],
        init_std: Annotated[float, AtLeast(0), Example("0.02")],
    ) -> None:
        super().__init__()
        grid_of(tokens, PART)
        self.r, self.tokenize, self.init_std = r, tokenize, init_std
        self.head = nn.Linear(r * r * tokens.dim, vocabulary, bias=False)
        self.norm = nn.LayerNorm(vocabulary)
        self.words = nn.Parameter(torch.empty(vocabulary, dim_out))

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, PART)
        grid = (-(-rows // self.r), -(-columns // self.r))
        return replace(regrid(tokens, grid, self.words.shape[1]), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        merged = space_to_depth(tokens, (self.r, self.r))
        logits = self.norm(self.head(merged.x))
        if self.tokenize == "gumbel" and self.training:
            uniform = context.noise("gumbel", logits).clamp(min=torch.finfo(torch.float32).tiny)
            logits = logits - (-uniform.log()).log().to(logits.dtype)
        share = logits.softmax(-1)
        return merged.with_features((share if self.tokenize == "softmax" else _hard(share)) @ self.words)

    def init_weights(self) -> None:
        nn.init.normal_(self.head.weight, std=self.init_std)
        self.norm.reset_parameters()
        nn.init.normal_(self.words, std=self.init_std)


def _hard(share: Float[Tensor, "*a v"]) -> Float[Tensor, "*a v"]:
    """All of the largest share, with the gradient of the shares (straight through, arXiv 1308.3432)."""
    one = F.one_hot(share.argmax(-1), share.shape[-1]).to(share.dtype)
    return one + share - share.detach()
