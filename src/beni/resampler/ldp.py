"""Lightweight downsample projector of MobileVLM (arXiv 2312.16886): MLP, then two depthwise-separable blocks.

Reference: ``LDPBlock`` of MobileVLM's ``vision_projector.py``, two of torchvision's ``InvertedResidual`` (MobileNetV3)
with expansion 1 and norms over the channels. Neither package is needed here: the tests assemble the blocks from torch's
functions, and from torchvision and timm where these are installed. Weights are drawn as torch does, as there.
Deviation: the grid comes with the tokens and need not be square.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from beni.nn.conv import LayerNorm2d, SqueezeExcitation, init_as_torch
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.mlp import FeedForward
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

STRIDES = (1, 2)


class Ldp(Stage):
    """``(i, rows * columns, d) -> (i, ceil(rows / 2) * ceil(columns / 2), dim_out)``: 576 tokens become 144.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int) -> None:
        super().__init__()
        grid_of(tokens, "resampler=ldp")
        self.mlp = FeedForward(tokens.dim, dim_out, dim_out, nn.GELU(), bias=True)
        blocks = nn.ModuleList(SeparableBlock(dim_out, stride) for stride in STRIDES)
        self.blocks = cast("list[SeparableBlock]", blocks)  # a ModuleList's items are typed as plain modules

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=ldp")
        return replace(regrid(tokens, (-(-rows // 2), -(-columns // 2)), self.mlp.fc2.out_features), space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        features = to_map(tokens.with_features(self.mlp(tokens.x)))
        for block in self.blocks:
            features = block(features)
        return from_map(features, tokens)

    def init_weights(self) -> None:
        init_as_torch(self)


class SeparableBlock(nn.Module):
    """``(i, d, rows, columns) -> (i, d, rows', columns')``: depthwise 3x3, squeeze-and-excitation, pointwise.

    The inverted residual of MobileNetV3 (arXiv 1905.02244) with expansion 1; residual at stride 1.
    """

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.depthwise = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.depthwise_norm = LayerNorm2d(dim)
        self.act = nn.Hardswish()
        self.excite = SqueezeExcitation(dim, squeeze_width(dim), nn.ReLU(), nn.Hardsigmoid())
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)
        self.pointwise_norm = LayerNorm2d(dim)

    def forward(self, x: Float[Tensor, "i d rows columns"]) -> Float[Tensor, "i d _ _"]:
        y = self.excite(self.act(self.depthwise_norm(self.depthwise(x))))
        y = self.pointwise_norm(self.pointwise(y))
        return x + y if self.residual else y


def squeeze_width(dim: int) -> int:
    """A quarter of ``dim``, rounded to a multiple of 8, at least 8 and 90 % of the quarter (MobileNet's rule)."""
    nearest = max(8, (dim // 4 + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * (dim // 4) else nearest + 8
