"""TokenPacker (arXiv 2407.02392): a coarse token reads the fine ones of its own region, in several encoder layers.

Reference: ``TokenPacker`` of the paper's ``multimodal_projector/builder.py``. No class of it can be loaded, so the
tests derive its result region by region with ``torch.nn.MultiheadAttention``. Weights are drawn as there. The further
layers come from the vision encoder (``vision.levels``; published: hidden states 12, 16, 22 and 23 of CLIP ViT-L/14,
beside the second-last as features). Deviations: grids need not be square, and widths are those of the encoder and of
the llm, there 1024 and 4096. Gates weigh the tokens that a coarse one is made of, as they weigh those that it reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.gates import open_mean
from beni.nn.grid import grid_of, regrid, space_to_depth, to_map
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers, draw_stacked, head_dim_of
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=tokenpacker"
EPS = 1e-6


class TokenPacker(Stage):
    """``(i, rows * columns, d) -> (i, rows/s * columns/s, dim_out)``: nothing outside its s x s region reaches a token.

    Args:
        tokens: spec of the incoming visual tokens; must bring ``levels``.
        dim_out: width of the llm.
        s: side of a region (tokens); divides rows and columns.
        hidden_size: width to work at; ``auto`` takes the width of the incoming tokens.
        num_heads: heads; divides ``hidden_size``.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``s`` does not divide it, E-LEVELS when
            no further layers come along, E-HEADS when ``num_heads`` does not divide ``hidden_size``.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        s: Annotated[int, AtLeast(1)],
        hidden_size: Annotated[int, AtLeast(1)] | Literal["auto"],
        num_heads: Annotated[int, AtLeast(1)],
    ) -> None:
        super().__init__()
        coarse_grid(grid_of(tokens, PART), s)
        if not tokens.levels:
            raise CompositionError(
                "E-LEVELS",
                f"{PART} reads further layers of the vision encoder, but none come along",
                groups=("vision", "resampler"),
                fix="set vision.levels, for instance to '[12,16,22,23]' for the 24 layers of vision=clip",
            )
        dim = tokens.dim if isinstance(hidden_size, str) else hidden_size
        self.s = s
        self.query_proj = nn.Linear(tokens.dim, dim, bias=False)
        self.key_mlp = FeedForward(tokens.levels, dim, dim, nn.GELU(), bias=True)
        self.value_mlp = FeedForward(tokens.levels, dim, dim, nn.GELU(), bias=True)
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attention = GroupedQueryAttention(dim, num_heads, num_heads, head_dim_of(dim, num_heads, PART), bias=True)
        self.proj = FeedForward(dim, dim_out, dim_out, nn.GELU(), bias=True)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid = coarse_grid(grid_of(tokens, PART), self.s)
        return replace(regrid(tokens, grid, self.proj.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(tokens)
        if tokens.levels is None:
            raise ValueError("tokenpacker was given tokens without levels")
        coarse = coarse_grid((features.shape[2], features.shape[3]), self.s)
        # bf16 interpolates with weights of bf16 on CPU
        wide = features if features.dtype == torch.float64 else features.float()
        log_gate = None if tokens.log_gate is None else tokens.log_gate.to(wide.dtype)
        if log_gate is None:
            coarse_map = resized(wide, coarse)
        else:
            gates = to_map(tokens.with_features(log_gate[..., None]))[:, 0]
            seen = open_mean(wide.movedim(1, -1), gates, lambda x: resized(x.movedim(-1, 1), coarse).movedim(1, -1))
            coarse_map = seen.movedim(-1, 1)
        coarse_map = coarse_map.to(features.dtype)
        queries = self.query_norm(self.query_proj(coarse_map.flatten(2).transpose(1, 2)))
        keys = self._regions(tokens, self.key_norm(self.key_mlp(tokens.levels)))
        values = self._regions(tokens, self.value_norm(self.value_mlp(tokens.levels)))
        k = self.s**2
        read = self.attention(  # each region is a row of its own: one query, s^2 keys
            queries.flatten(0, 1)[:, None],
            keys.x.unflatten(2, (k, -1)).flatten(0, 1),
            values=values.x.unflatten(2, (k, -1)).flatten(0, 1),
            log_gate=None if log_gate is None else self._regions(tokens, log_gate[..., None]).x.flatten(0, 1),
        )
        return keys.with_features(self.proj(read.view_as(queries)))

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.trunc_normal_(weight, std=0.02))
        draw_stacked(self.attention)

    def _regions(self, tokens: VisualTokens, features: Tensor) -> VisualTokens:
        return space_to_depth(tokens.with_features(features), (self.s, self.s))


def resized(features: Float[Tensor, "i d rows columns"], grid: tuple[int, int]) -> Float[Tensor, "i d _ _"]:
    """The map on another grid, bilinear."""
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def coarse_grid(grid: tuple[int, int], s: int) -> tuple[int, int]:
    """Rows and columns of the s x s regions of ``grid``.

    Raises:
        CompositionError: E-DIV when ``s`` does not divide it.
    """
    rows, columns = grid
    if s < 1 or rows % s or columns % s:
        legal = [str(r) for r in range(1, min(grid) + 1) if rows % r == columns % r == 0]
        raise CompositionError(
            "E-DIV",
            f"{PART}: s={s} does not divide the {rows}x{columns} grid",
            groups=("vision", "resampler"),
            fix=f"set resampler.s to one of {', '.join(legal)}, or vision.image_size so that s divides the grid",
        )
    return rows // s, columns // s
