"""Windows at even distances: regions without a choice, which every way of choosing them must beat."""

from __future__ import annotations

from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import dealt, even_windows, require_sizes
from beni.resampler.roi import RegionProposer, Regions, precise
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


class GridRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: windows in rows, from edge to edge.

    Args:
        tokens: spec of the incoming visual tokens.
        regions: boxes of each view.
        sizes: of windows, as shares of the view's sides; each gets an equal portion of the boxes.
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
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        require_sizes(sizes, "resampler.sizes")
        super().__init__(tokens, "resampler=roi_grid", dealt(regions, sizes), bins, samples, whole, embed_boxes)
        self.sizes = sizes

    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        boxes = even_windows(self.regions, self.sizes).to(precise(tokens.x))
        return Regions(boxes.expand(len(tokens.x), -1, -1))
