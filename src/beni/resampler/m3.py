"""Matryoshka Multimodal Models, M3 (arXiv 2405.17430): an MLP, then average pooling to one of several nested grids.

Reference: ``matryoshka_vis_token_process`` in ``llava/model/llava_arch.py`` of https://github.com/mu-cai/matryoshka-mm;
no class of it can be loaded, the tests derive it from ``avg_pool2d``. A model trained on all grids can be asked at any
of them. ``train=all`` is the paper: each sample passes the llm once for every grid, the loss is their mean. Cheaper,
and the same in expectation: ``train=sample`` draws one grid for each sample. Deviations: grids need not be square, and
each has its own factors.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.errors import CompositionError
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.mlp import FeedForward
from beni.nn.rows import stack
from beni.stage import Stage, StageContext
from beni.types import Nested, TokenSpec, VisualTokens

PART = "resampler=m3"


class M3(Stage):
    """``(i, rows * columns, d) -> (i, rows/f * columns/f, dim_out)``, f the factor of the row's scale.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        factors: by which both sides of the grid may shrink; ``auto`` are all products of the first prime factors that
            the sides have in common: 1, 2, 4, 8, 24 for 24x24, 1, 3, 9, 27 for 27x27.
        factor: the one that evaluation and generation use.
        train: ``all`` for each sample, one drawn for it (``sample``), or ``factor`` alone (``fixed``).
        init_std: standard deviation of the normal draw of the weights.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when a factor does not divide its sides.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        factors: list[Annotated[int, AtLeast(1)]] | Literal["auto"],
        factor: Annotated[int, AtLeast(1)],
        train: Literal["all", "sample", "fixed"],
        init_std: Annotated[float, AtLeast(0), Example("0.02")],
    ) -> None:
        super().__init__()
        grid = grid_of(tokens, PART)
        self.factors = (factor, *(common_factors(grid) if isinstance(factors, str) else factors))
        self.init_std = init_std
        if train != "fixed":
            self.nested = Nested(len(self.factors) - 1, every=train == "all")
        self.mlp = FeedForward(tokens.dim, dim_out, dim_out, nn.GELU(), bias=True)
        for scale in range(len(self.factors)):
            self.spec(replace(tokens, scale=scale))

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, PART)
        factor = self.factors[tokens.scale]
        if factor < 1 or rows % factor or columns % factor:
            legal = [str(k) for k in range(1, min(rows, columns) + 1) if rows % k == columns % k == 0]
            raise CompositionError(
                "E-DIV",
                f"{PART}: factor {factor} does not divide the {rows}x{columns} grid of visual tokens",
                groups=("vision", "resampler"),
                fix=f"set resampler.factor and resampler.factors to some of {', '.join(legal)}",
            )
        return replace(regrid(tokens, (rows // factor, columns // factor), self.mlp.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        made = tokens.with_features(self.mlp(tokens.x))
        scales = context.scales or (0,) * len(tokens.x)
        parts, places = [], []
        for scale in sorted(set(scales)):
            rows = torch.tensor([i for i, own in enumerate(scales) if own == scale], device=tokens.x.device)
            some = made.select(rows) if len(rows) < len(scales) else made
            parts.append(from_map(F.avg_pool2d(to_map(some), self.factors[scale]), some))
            places.append(rows)
        return parts[0] if len(parts) == 1 else stack(parts, places)

    def init_weights(self) -> None:
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)


def common_factors(grid: tuple[int, int]) -> list[int]:
    """1 and the products of the first few prime factors, the smallest first, of what both sides can be divided by."""
    rest, factors = gcd(*grid), [1]
    while rest > 1:
        prime = next(k for k in range(2, rest + 1) if rest % k == 0)
        rest //= prime
        factors.append(factors[-1] * prime)
    return factors
