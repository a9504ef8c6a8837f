"""DeepSeek-OCR's compressor (arXiv 2510.18234): convolutions of stride 2, of which two leave a sixteenth of the tokens.

Reference: ``transformers`` ``DeepseekOcr2SamVisionProj``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights. It
stands there between SAM, whose features have 256 channels behind a norm, and a second encoder; here behind the encoder
and before the connector. Nothing is between the convolutions. Deviation: weights are drawn as torch does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from torch import nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.conv import init_as_torch
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=deepseek_ocr"


class DeepSeekOcr(Stage):
    """``(i, rows * columns, d) -> (i, rows/2^k * columns/2^k, channels[-1])`` for k convolutions, sides rounded up.

    Args:
        tokens: spec of the incoming visual tokens.
        channels: width behind each convolution; as many as the list is long.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DEPTH when ``channels`` is empty.
    """

    def __init__(self, tokens: TokenSpec, *, channels: list[Annotated[int, AtLeast(1)]]) -> None:
        super().__init__()
        grid_of(tokens, PART)
        if not channels:
            raise CompositionError(
                "E-DEPTH",
                f"{PART}: resampler.channels={channels}, but there is at least one convolution",
                groups=("resampler",),
                fix="set resampler.channels=[512,1024] for two, or resampler=none",
            )
        self.convs = nn.Sequential(
            *(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise([tokens.dim, *channels]))
        )
        self.dim = channels[-1]

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, PART)
        for _ in self.convs:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return regrid(tokens, (rows, columns), self.dim)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return from_map(self.convs(to_map(tokens)), tokens)

    def init_weights(self) -> None:
        init_as_torch(self)
