"""Tokens of regions: boxes are proposed, and each is pooled to a few tokens from the map that the encoder has made.

Nothing is encoded twice: a region costs its pooled tokens and no pass of the encoder (crops that are encoded anew are
``views=regions_*``). A proposer says which boxes; what is here pools them with RoI-Align (``beni.nn.roi_align``),
beside the pooled whole map, and may add to each token where its box lies: sines and cosines of its sides and its area
through an MLP of two layers, the last of which starts at zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.nn.boxes import areas, box_around, even_windows
from beni.nn.grid import grid_of, regrid, to_map
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers
from beni.nn.roi_align import bin_centres, roi_align
from beni.stage import Drawn, Stage, StageContext, require_gates_kept
from beni.types import TokenSpec, VisualTokens
from beni.types.visual import centres

OCTAVES = 8
"""Sines and cosines of each number of a box: of pi times it, twice that, and so on; the last tells 1/256 apart."""

INSTEAD = 0.5
"""Size of the windows, as a share of the view's sides, that stand for objects which were not found."""


@dataclass(frozen=True)
class Regions:
    """Boxes of each row, the same number for all.

    Attributes:
        boxes: (top, left, bottom, right), shares of the view.
        log_gate: of the tokens of each box; None where all are open.
    """

    boxes: Float[Tensor, "i r 4"]
    log_gate: Float[Tensor, "i r"] | None = None

    def some(self, first: int, last: int) -> Regions:
        """The boxes from ``first`` up to ``last``."""
        gates = None if self.log_gate is None else self.log_gate[:, first:last]
        return Regions(self.boxes[:, first:last], gates)


class RegionProposer(Stage):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: the whole view, then region by region.

    Subclasses are final; each proposes boxes in its own way.

    Args:
        tokens: spec of the incoming visual tokens.
        part: as it is written on the command line, for messages.
        sides: of each box of a view the longest that it can have, as a share of the view's.
        bins: rows and columns of tokens of each box.
        samples: points along each side of a bin that are averaged; ``auto`` takes as many as leave no cell of the map
            out of such a box.
        whole: rows and columns of tokens of the whole view, which come first; 0 leaves them out.
        embed_boxes: add to each token where its box lies.

    Attributes:
        gates: whether its tokens have gates; None where it makes none, and says nothing of those that come.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """

    gates: bool | None = None
    silent_at_start = ("box_embedding.fc1.*",)  # the layer behind it starts at zero

    def __init__(
        self,
        tokens: TokenSpec,
        part: str,
        sides: Sequence[float],
        bins: int,
        samples: int | Literal["auto"],
        whole: int,
        embed_boxes: bool,
    ) -> None:
        super().__init__()
        grid_of(tokens, part)
        self.part, self.sides, self.regions, self.bins, self.whole = part, tuple(sides), len(sides), bins, whole
        self.samples: int | Literal["auto"] = samples
        dim = tokens.dim
        self.box_embedding = FeedForward(10 * OCTAVES, dim, dim, nn.GELU(), bias=True) if embed_boxes else None

    @abstractmethod
    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        """``regions`` boxes of each row. A row's boxes depend on no other row."""

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid_of(tokens, self.part)
        made = replace(regrid(tokens, (1, self.whole**2 + self.regions * self.bins**2), tokens.dim), grid=None)
        if self.gates is None:
            return made
        require_gates_kept(self, tokens, made, "resampler", self.part.partition("=")[2])  # its own read no others
        return replace(made, gated=self.gates)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        grid, regions = grid_in(tokens), self.propose(tokens, context)
        context.drawn("regions", coverage(regions.boxes, grid), tokens)
        pieces = []
        if self.whole:
            view = regions.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(tokens.x), 1, 4)
            gates = None if regions.log_gate is None else torch.zeros_like(regions.log_gate[:, :1])
            pieces.append(self._pooled(tokens, Regions(view, gates), 1.0, self.whole))
        first = 0
        for side, alike in groupby(self.sides):  # with as many points each
            last = first + len(list(alike))
            pieces.append(self._pooled(tokens, regions.some(first, last), side, self.bins))
            first = last
        pooled = VisualTokens.cat(pieces)
        patches = (tokens.size * tokens.mask).sum(1, keepdim=True)
        return replace(pooled, size=pooled.size * (patches / pooled.size.sum(1, keepdim=True)))

    def init_weights(self) -> None:
        if self.box_embedding is not None:
            draw_layers(self.box_embedding, lambda weight: nn.init.normal_(weight, std=weight.shape[1] ** -0.5))
            nn.init.zeros_(self.box_embedding.fc2.weight)
        for part in self.children():
            if part is not self.box_embedding:
                cast(Drawn, part).init_weights()

    def _pooled(self, tokens: VisualTokens, regions: Regions, side: float, bins: int) -> VisualTokens:
        """Tokens of boxes of which none is longer than ``side``; those of a box stand for equal parts of it."""
        features, boxes = to_map(tokens), regions.boxes
        samples = math.ceil(side * max(features.shape[2:]) / bins) if self.samples == "auto" else self.samples
        x = roi_align(features, boxes, bins, samples)  # (i, r, m, d)
        if self.box_embedding is not None:
            x = x + self.box_embedding(box_features(boxes).to(x.dtype))[:, :, None]

        def each(of_box: Float[Tensor, "i r"]) -> Float[Tensor, "i rm"]:
            return of_box[..., None].expand(-1, -1, bins**2).flatten(1)

        made = VisualTokens.fresh(
            x=x.flatten(1, 2),
            mask=tokens.mask.new_ones(len(x), x.shape[1] * x.shape[2]),
            yx=bin_centres(boxes, bins).flatten(1, 2).to(tokens.yx.dtype),
            size=each(areas(boxes) / bins**2).to(tokens.size.dtype),
        )
        return made if regions.log_gate is None else replace(made, log_gate=each(regions.log_gate))


def box_features(boxes: Float[Tensor, "i r 4"]) -> Float[Tensor, "i r f"]:
    """Sines and cosines of the four sides and the area of each box, ``OCTAVES`` of each."""
    numbers = torch.cat([boxes, areas(boxes)[..., None]], -1).double()  # angles of hundreds, of which small parts count
    rates = math.pi * 2.0 ** torch.arange(OCTAVES, device=boxes.device, dtype=numbers.dtype)
    angles = (numbers[..., None] * rates).flatten(2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def coverage(boxes: Float[Tensor, "i r 4"], grid: tuple[int, int]) -> Float[Tensor, "i n"]:
    """The share of the boxes in which the centre of each cell of a grid lies, for pictures."""
    y, x = centres(grid, boxes.device).unbind(-1)  # (1, n)
    top, left, bottom, right = boxes[..., None].unbind(2)  # (i, r, 1)
    inside = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
    return inside.to(boxes.dtype).mean(1)


def heat_map(values: Float[Tensor, "i n"], tokens: VisualTokens) -> Float[Tensor, "i rows columns"]:
    """Values of tokens as a map, in fp32 at least."""
    return precise(values).unflatten(1, grid_in(tokens))


def precise(x: Tensor) -> Tensor:
    """Numbers in fp32 at least: bf16 cannot tell apart places that are 1/256 of the picture from each other."""
    return x if x.dtype == torch.float64 else x.float()


def stretched(heat: Float[Tensor, "i n"]) -> Float[Tensor, "i n"]:
    """Values of each row from 0 at the lowest to 1 at the highest, for pictures."""
    low, high = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    return (heat - low) / (high - low).clamp(min=torch.finfo(heat.dtype).tiny)


def grid_in(tokens: VisualTokens) -> tuple[int, int]:
    """(rows, columns) of tokens that form a grid.

    Raises:
        ValueError: when they form none.
    """
    if tokens.grid is None:
        raise ValueError("regions were to be found among tokens without a grid")
    return tokens.grid


def compared(tokens: VisualTokens, of: Literal["features", "keys"], centred: bool) -> Float[Tensor, "i n d"]:
    """The tokens' features or keys in fp32 at least, each of length one.

    Args:
        centred: subtract the mean of the row first.

    Raises:
        ValueError: when keys are asked for and there are none.
    """
    x = tokens.x if of == "features" else tokens.keys
    if x is None:
        raise ValueError("a resampler that compares keys was given none")
    x = precise(x.detach())
    return F.normalize(x - x.mean(1, keepdim=True) if centred else x, dim=-1)


def objects(
    find: Callable[[Bool[Tensor, "i n"]], Bool[Tensor, "i n"]], tokens: VisualTokens, count: int, least: int = 1
) -> Float[Tensor, "i count 4"]:
    """Boxes of objects that are found one after another among the patches that no object before has taken; windows at
    even distances where too few are left.

    Args:
        find: which patches are left -> those of an object, of which there is at least one.
        least: patches that ``find`` needs.
    """
    grid, left = grid_in(tokens), tokens.mask
    boxes = even_windows(count, (INSTEAD,)).to(precise(tokens.x)).repeat(len(left), 1, 1)
    for region in range(count):
        enough = left.sum(1) >= least
        found = find(torch.where(enough[:, None], left, tokens.mask)) & enough[:, None]
        box = box_around(found.unflatten(1, grid)).to(boxes.dtype)
        boxes[:, region] = torch.where(enough[:, None], box, boxes[:, region])
        left = left & ~found
    return boxes
