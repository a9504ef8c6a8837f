"""Windows in which a heat map of the encoder is highest: what it attends to, or where its features are large.

The heat in a window is its mean, by the integral image; the best window is taken, those that overlap with it are set
aside, and so on, for each size of windows. ViCrop (arXiv 2502.17422) slides windows over such maps too, of what an llm
attends to while it answers; here the map is the encoder's own, so that nothing runs twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.nn.boxes import best_windows, dealt, require_sizes
from beni.resampler.roi import RegionProposer, Regions, heat_map, precise, stretched
from beni.stage import Reads, StageContext
from beni.types import TokenSpec, VisualTokens


class SalientRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: windows with most heat, the hottest first.

    Args:
        tokens: spec of the incoming visual tokens.
        regions: boxes of each view.
        sizes: of windows, as shares of the view's sides; each gets an equal portion of the boxes.
        heat: the ``attention`` that the encoder pays to each patch, from its CLS token where it has one, or the
            ``norm`` of each patch's features.
        overlap: intersection over union above which windows of one size exclude each other.
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
        heat: Literal["attention", "norm"],
        overlap: Annotated[float, AtLeast(0), AtMost(1)],
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        require_sizes(sizes, "resampler.sizes")
        super().__init__(tokens, "resampler=roi_saliency", dealt(regions, sizes), bins, samples, whole, embed_boxes)
        self.sizes, self.heat, self.overlap = sizes, heat, overlap
        self.reads: frozenset[Reads] = frozenset({"attn"} if heat == "attention" else ())

    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        heat = tokens.attn if self.heat == "attention" else precise(tokens.x).norm(dim=-1)
        if heat is None:
            raise ValueError("resampler=roi_saliency was given no attention of the encoder")
        heat = heat.detach()
        context.drawn("heat", stretched(heat), tokens)
        boxes, _ = best_windows(heat_map(heat, tokens), self.regions, self.sizes, self.overlap)
        return Regions(boxes)
