"""C-Abstractor of Honeybee (arXiv 2312.06742): residual convolutions, average pooling, residual convolutions, MLP.

Reference: ``CAbstractor`` of Honeybee's ``projectors.py``, whose convolutions are timm's ``RegStage``: the bottleneck
of RegNet (arXiv 2003.13678) at stride 1 with one channel a group, so its 3x3 convolution is depthwise. The norms have
timm's epsilon for this place, 1e-5. timm is not needed here: the tests assemble the blocks from elementary operations,
and from timm where it is installed. Weights are drawn as torch does, positions and end tokens from a truncated normal,
as there. Deviations: grids need not be square, and other ones than that of the positions resize them; upstream adds the
positions in place, into features that others may read.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost
from beni.errors import CompositionError
from beni.nn.conv import LayerNorm2d, SqueezeExcitation, init_as_torch
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.honeybee import LearnedPositions, append_tokens, appended, learned_tokens, pooled_grid
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=c_abstractor"


class CAbstractor(Stage):
    """``(i, rows * columns, d) -> (i, side^2 + num_eos_tokens, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        side: rows and columns of the result (tokens), at most those of the grid; ``auto`` is half of each, rounded up.
        hidden_size: channels of the convolutions.
        depth: blocks before the pooling, and as many after it; at least 1.
        mlp_depth: linear layers at the end, with SiLU between; at least 1.
        prenorm: standardise the incoming features first.
        num_eos_tokens: learned tokens after those of each view; with any, the result forms no grid.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when it is smaller than the result, E-DEPTH
            when ``depth`` or ``mlp_depth`` is below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        side: Annotated[int, AtLeast(1)] | Literal["auto"],
        hidden_size: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        mlp_depth: Annotated[int, AtLeast(1)],
        prenorm: bool,
        num_eos_tokens: Annotated[int, AtLeast(0)],
    ) -> None:
        super().__init__()
        grid = grid_of(tokens, PART)
        pooled_grid(side, grid, PART)
        for name, value in (("depth", depth), ("mlp_depth", mlp_depth)):
            if value < 1:
                raise CompositionError(
                    "E-DEPTH", f"{PART}: {name}={value}, expected at least 1", fix=f"set resampler.{name}=1 or more"
                )
        self.side: int | Literal["auto"] = side
        self.norm = nn.LayerNorm(tokens.dim, eps=1e-6) if prenorm else nn.Identity()
        self.positions = LearnedPositions(grid, tokens.dim)
        self.before = stage(tokens.dim, hidden_size, depth)
        self.after = stage(hidden_size, hidden_size, depth)
        readout = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([hidden_size] + [dim_out] * mlp_depth))
        self.readout = cast("list[nn.Linear]", readout)  # a ModuleList's items are typed as plain modules
        self.eos = learned_tokens(num_eos_tokens, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return appended(self._pooled(tokens), self.eos)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(self.positions(tokens.with_features(self.norm(tokens.x))))
        for block in self.before:
            features = block(features)
        features = F.adaptive_avg_pool2d(features, pooled_grid(self.side, (features.shape[2], features.shape[3]), PART))
        for block in self.after:
            features = block(features)
        pooled = from_map(features, tokens)
        x = self.readout[0](pooled.x)
        for layer in self.readout[1:]:
            x = layer(F.silu(x))
        return append_tokens(pooled.with_features(x), self.eos)

    def init_weights(self) -> None:
        init_as_torch(self)
        self.positions.init_weights()
        if self.eos is not None:
            nn.init.trunc_normal_(self.eos, std=0.02)

    def _pooled(self, tokens: TokenSpec) -> TokenSpec:
        grid = pooled_grid(self.side, grid_of(tokens, PART), PART)
        return replace(regrid(tokens, grid, self.readout[-1].out_features), space="llm")


def stage(dim_in: int, dim: int, depth: int) -> list[RegNetBlock]:
    """``depth`` blocks one after the other; the first brings ``dim_in`` channels to ``dim``."""
    blocks = nn.ModuleList(RegNetBlock(a, b) for a, b in pairwise([dim_in] + [dim] * depth))
    return cast("list[RegNetBlock]", blocks)  # a ModuleList's items are typed as plain modules


class RegNetBlock(nn.Module):
    """``(i, d, rows, columns) -> (i, d', rows, columns)``: pointwise, depthwise 3x3, excitation, pointwise; residual.

    SiLU after each convolution but the last, and after the sum. The squeeze is a quarter of the channels coming in.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim_in, dim, 1, bias=False)
        self.expand_norm = LayerNorm2d(dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.depthwise_norm = LayerNorm2d(dim)
        self.excite = SqueezeExcitation(dim, max(1, round(dim_in / 4)), nn.SiLU(), nn.Sigmoid())
        self.project = nn.Conv2d(dim, dim, 1, bias=False)
        self.project_norm = LayerNorm2d(dim)
        self.shortcut = nn.Identity() if dim_in == dim else nn.Conv2d(dim_in, dim, 1, bias=False)
        self.shortcut_norm = nn.Identity() if dim_in == dim else LayerNorm2d(dim)

    def forward(self, x: Float[Tensor, "i d rows columns"]) -> Float[Tensor, "i e rows columns"]:
        y = F.silu(self.expand_norm(self.expand(x)))
        y = self.excite(F.silu(self.depthwise_norm(self.depthwise(y))))
        y = self.project_norm(self.project(y))
        return F.silu(y + self.shortcut_norm(self.shortcut(x)))
