"""Random windows: the other baseline for regions. Training draws new ones in every step, evaluation always the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import dealt, require_sizes
from beni.resampler.roi import RegionProposer, Regions
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


class RandomRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: windows anywhere in the view, evenly likely.

    Args:
        tokens: spec of the incoming visual tokens.
        regions: boxes of each view.
        sizes: of windows, as shares of the view's sides; each gets an equal portion of the boxes.
        seed: draws other windows for the same samples, so that two arms of a study may differ in nothing else.
        bins: rows and columns of tokens of each box.
        samples: points along each side of a bin that are averaged; ``auto`` leaves no cell of a box out.
        whole: rows and columns of tokens of the whole view, which come first; 0 leaves them out.
        embed_boxes: add to each token where its box lies.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
        ConfigError: when there are no ``sizes``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        regions: Annotated[int, AtLeast(1)],
        sizes: list[Annotated[float, Above(0), AtMost(1)]],
        seed: Annotated[int, AtLeast(0)],
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        require_sizes(sizes, "resampler.sizes")
        super().__init__(tokens, "resampler=roi_random", dealt(regions, sizes), bins, samples, whole, embed_boxes)
        self.seed = seed

    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        drawn = context if self.training else replace(context, step=0)
        images, sizes = len(tokens.x), tokens.yx.new_tensor(self.sides)[:, None]
        corner = drawn.noise(f"boxes {self.seed}", tokens.yx.new_empty(images, self.regions, 2)).to(tokens.yx)
        corner = corner * (1 - sizes)
        return Regions(torch.cat([corner, corner + sizes], -1))
