"""Window Q-Former (Granite Vision 4): a grid of queries, each seeing only the patches of its own window.

Reference: ``transformers`` ``Granite4VisionWindowQFormerDownsampler``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its
weights; the model has no paper. The Q-Former is that of BLIP-2 (arXiv 2301.12597), at the width of the vision encoder.
Queries start from the patches they replace, averaged, so the result stays a picture with rows and columns.
Deviations: any grid, not only a square one; where the window does not divide a side, the last windows are smaller and
queries that would have no patch are left out. The reference's variant that starts from one corner of each 2x2 block
instead of the average, for features injected between layers of the llm, is not here. Gates weigh the average that a
query starts from as they weigh the patches that it reads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.errors import CompositionError
from beni.nn.gates import open_mean
from beni.nn.grid import grid_of, regrid, to_map
from beni.nn.qformer import QFormerEncoder
from beni.nn.queries import draw_layers, head_dim_of
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens

NO_PATCH = 1e-6
"""Below any share of a cell that a patch can have."""


class QFormerWindow(Stage):
    """``(i, rows * columns, d) -> (i, rows * columns * (side / window)^2, dim_out)``, sides rounded up.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        window: rows and columns of a window (patches).
        side: rows and columns of the queries of a window (tokens), at most ``window``.
        depth: layers; each looks at the patches of the window.
        num_heads: heads of both attentions; must divide the width of the tokens.
        intermediate_size: hidden width of the feed-forward layers.
        dropout: probability in [0, 1), on attention weights, on each branch, on the patches and on the result.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``side`` exceeds ``window``, E-HEADS
            when ``num_heads`` does not divide the width.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        window: Annotated[int, AtLeast(1)],
        side: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_heads: Annotated[int, AtLeast(1)],
        intermediate_size: Annotated[int, AtLeast(1)],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        grid_of(tokens, "resampler=qformer_window")
        if not 1 <= side <= window:
            raise CompositionError(
                "E-DIV",
                f"resampler.side={side} queries a side cannot stand for resampler.window={window} patches a side",
                groups=("resampler",),
                fix=f"set resampler.side to 1..{window}",
            )
        dim = tokens.dim
        head_dim_of(dim, num_heads, "resampler=qformer_window")
        self.window, self.side = window, side
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.queries = nn.Parameter(torch.empty(side**2, dim))
        self.positions = nn.Parameter(torch.empty(window**2, dim))
        self.encoder = QFormerEncoder(
            dim,
            dim,
            depth=depth,
            num_heads=num_heads,
            dim_hidden=intermediate_size,
            cross_attention_every=1,
            reads_text=False,
            dropout=dropout,
        )
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid = self._cells(grid_of(tokens, "resampler=qformer_window"))
        return replace(regrid(tokens, grid, self.proj.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(tokens.with_features(self.norm(tokens.x)))
        rows, columns = self._cells((features.shape[2], features.shape[3]))
        patches = self._padded(features)
        windows = (patches.shape[2] // self.window, patches.shape[3] // self.window)
        cells = (windows[0] * self.side, windows[1] * self.side)

        facts = torch.cat([torch.ones_like(tokens.size)[..., None], tokens.size[..., None], tokens.yx], -1)
        real = self._padded(to_map(tokens.with_features(facts)))
        share, size, yx = F.adaptive_avg_pool2d(real, cells).split((1, 1, 2), 1)
        share = share.clamp(min=NO_PATCH)
        log_gate = None
        if tokens.log_gate is None:
            means = F.adaptive_avg_pool2d(patches, cells) / share.to(patches.dtype)  # of the real patches of each cell
        else:
            gates = to_map(tokens.with_features(tokens.log_gate[..., None]))
            seen = open_mean(features.movedim(1, -1), gates[:, 0], lambda x: self._pooled(x, cells))
            means, log_gate = seen.movedim(-1, 1), _split(self._padded(gates), self.window)[..., 0]

        read = self.encoder(
            _split(means, self.side) + self.queries,
            self.dropout(_split(patches, self.window) + self.positions),
            _split(real[:, :1], self.window)[..., 0] > 0,
            _split(share, self.side)[..., 0] > NO_PATCH,
            log_gate=log_gate,
        )
        x = _join(self.proj(self.dropout(read)), windows)

        x, yx, size = (a[:, :, :rows, :columns].flatten(2).transpose(1, 2) for a in (x, yx / share, size))
        size = size.squeeze(-1) * (tokens.size.sum(1, keepdim=True) / size.sum((1, 2))[:, None])
        dense = VisualTokens.dense(x, (rows, columns))
        return replace(dense, yx=yx, size=size)

    def init_weights(self) -> None:
        for embedding in (self.queries, self.positions):
            nn.init.normal_(embedding, std=embedding.shape[1] ** -0.5)
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))

    def _cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of queries that have a patch."""
        return math.ceil(grid[0] * self.side / self.window), math.ceil(grid[1] * self.side / self.window)

    def _pooled(self, x: Float[Tensor, "i rows columns c"], cells: tuple[int, int]) -> Float[Tensor, "i _ _ c"]:
        return F.adaptive_avg_pool2d(self._padded(x.movedim(-1, 1)), cells).movedim(1, -1)

    def _padded(self, x: Float[Tensor, "i c rows columns"]) -> Float[Tensor, "i c _ _"]:
        return F.pad(x, (0, -x.shape[3] % self.window, 0, -x.shape[2] % self.window))


def _split(x: Float[Tensor, "i c rows columns"], side: int) -> Float[Tensor, "_ k c"]:
    """``(i, c, rows, columns) -> (i * windows, side^2, c)``, windows and places in them row-major."""
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def _join(x: Float[Tensor, "_ k c"], windows: tuple[int, int]) -> Float[Tensor, "i c _ _"]:
    """The inverse of ``_split`` for so many rows and columns of windows."""
    side = math.isqrt(x.shape[1])
    x = x.unflatten(1, (side, side)).unflatten(0, (-1, *windows))  # (i, rows, columns, side, side, c)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
