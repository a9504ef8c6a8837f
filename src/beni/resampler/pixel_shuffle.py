"""Pixel shuffle: r x r neighbouring tokens become one, their features side by side. The connector is the head.

Papers: InternVL 1.5 (arXiv 2404.16821), Idefics3 (2408.12637), Qwen2-VL (2409.12191), NVILA (2412.04468).
References, equal to 1e-5 in fp32 and 1e-10 in fp64 with their weights, each with the connector that makes its head
(``connector/mlp.py`` lists them): ``transformers`` ``Idefics3Connector``, ``InternVLMultiModalProjector``,
``Lfm2VlMultiModalProjector``, ``Llama4VisionPixelShuffleMLP``, Qwen2-VL's ``PatchMerger``,
``Mistral3MultiModalProjector``.

Order of the channels: (row in the block, column in the block, channel), see ``nn/grid.py``; Mistral 3's is (channel,
row, column), so its weights are permuted when they are loaded. Deviation: the two norms have eps 1e-6, as Qwen2-VL's;
Mistral 3's is a key of its llm. Idefics3 and Llama 4 take any token count for that of a square; here it is an error.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.nn.grid import grid_of, regrid, space_to_depth
from beni.nn.norms import make_norm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PixelShuffle(Stage):
    """``(i, rows * columns, d) -> (i, rows/r * columns/r, r^2 d)``, or as wide as ``merge`` says.

    Args:
        tokens: spec of the incoming visual tokens.
        r: rows and columns of a block (tokens).
        pad: ``zeros`` fills up sides that ``r`` does not divide, below and on the right; ``error`` refuses them.
        norm: ``none``, ``layernorm`` or ``rmsnorm`` on each token, before merging.
        merge: width that a linear layer without bias brings the merged tokens to; ``same`` is the width of the
            incoming tokens, ``null`` leaves the layer out.

    Levels that come along are merged likewise, each by itself, for what reads them further on (``fusion=deepstack``).

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when ``r`` does not divide its sides.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        r: Annotated[int, AtLeast(1)],
        pad: Literal["error", "zeros"],
        norm: Literal["none", "layernorm", "rmsnorm"],
        merge: Annotated[int, AtLeast(1)] | Literal["same"] | None,
    ) -> None:
        super().__init__()
        self.r = r
        _check_blocks(grid_of(tokens, "resampler=pixel_shuffle"), r, pad)
        self.norm = make_norm(norm, tokens.dim, eps=1e-6)
        width = tokens.dim if isinstance(merge, str) else merge
        self.merge = None if width is None else nn.Linear(r * r * tokens.dim, width, bias=False)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        rows, columns = grid_of(tokens, "resampler=pixel_shuffle")
        dim = self.r**2 * tokens.dim if self.merge is None else self.merge.out_features
        merged = regrid(tokens, (-(-rows // self.r), -(-columns // self.r)), dim)
        return replace(merged, levels=self.r**2 * tokens.levels)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        merged = self._blocks(tokens, self.norm(tokens.x))
        if tokens.levels is not None:
            width = tokens.x.shape[-1]  # that of one hidden state, where all are of one encoder
            levels = tokens.levels.split(width if tokens.levels.shape[-1] % width == 0 else tokens.levels.shape[-1], -1)
            merged = replace(merged, levels=torch.cat([self._blocks(tokens, level).x for level in levels], -1))
        return merged if self.merge is None else merged.with_features(self.merge(merged.x))

    def _blocks(self, tokens: VisualTokens, features: Float[Tensor, "i n d"]) -> VisualTokens:
        return space_to_depth(tokens.with_features(features), (self.r, self.r))

    def init_weights(self) -> None:
        reset_norms(self)
        if self.merge is not None:
            nn.init.normal_(self.merge.weight, std=self.merge.in_features**-0.5)


def _check_blocks(grid: tuple[int, int], r: int, pad: str) -> None:
    rows, columns = grid
    common = gcd(rows, columns)
    if r < 1 or (pad == "error" and common % r):
        legal = [str(k) for k in range(2, common + 1) if common % k == 0]
        wider = f"{rows + -rows % max(r, 1)}x{columns + -columns % max(r, 1)}"
        raise CompositionError(
            "E-DIV",
            f"resampler=pixel_shuffle: r={r} does not divide the {rows}x{columns} grid of visual tokens",
            groups=("vision", "resampler"),
            fix=(f"set resampler.r={' or '.join(legal)}, " if legal else "set ")
            + f"a vision.image_size that gives {wider} tokens, or resampler.pad=zeros",
        )
