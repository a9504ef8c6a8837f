"""Boxes of objects that are found without labels: TokenCut (arXiv 2202.11539), on the encoder's patches.

Patches are nodes of a graph with edges of weight 1 between those whose cosine exceeds ``threshold``, and of nearly 0
between all others. The second smallest eigenvector of (D - W) y = lambda D y divides them, as the normalised cut of
Shi & Malik (2000) would; those above its mean are one side. The object is the side with the patch whose absolute value
is largest, as far as it hangs together with that patch. The tests derive the same from the eigenvectors that scipy
finds of that equation.

Deviations: the paper finds one object; here its patches are left out, and the graph of the others is cut again
(MaskCut of arXiv 2301.11320 does so with the patches' edges set to nearly 0), until there are ``regions`` or fewer than
two patches, when windows at even distances take their places. Keys are means over heads, there they are side by side.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, Below
from beni.nn.boxes import component
from beni.resampler.roi import RegionProposer, Regions, compared, grid_in, objects
from beni.stage import Reads, StageContext
from beni.types import TokenSpec, VisualTokens

FAINT = 1e-5
"""Weight of an edge between patches that are not alike, which keeps the graph in one piece."""
BEYOND = 3.0
"""Eigenvalue of nodes that are no longer there: those of the others end at 2."""
EQUAL = 1e-6
"""Relative difference up to which values of an eigenvector are the same."""


class TokenCutRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: boxes around objects, the best cut first.

    The eigenvectors of a view of n patches take about n^3 operations, on which no FLOPs are counted.

    Args:
        tokens: spec of the incoming visual tokens.
        regions: boxes of each view.
        of: what is compared: the patches' ``features``, or the encoder's ``keys`` of its last attention that is read.
        centred: subtract the mean of a view's patches first.
        threshold: cosine above which patches are alike.
        bins: rows and columns of tokens of each box.
        samples: points along each side of a bin that are averaged; ``auto`` leaves no cell of a box out.
        whole: rows and columns of tokens of the whole view, which come first; 0 leaves them out.
        embed_boxes: add to each token where its box lies.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        regions: Annotated[int, AtLeast(1)],
        of: Literal["features", "keys"],
        centred: bool,
        threshold: Annotated[float, Above(-1), Below(1)],
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        super().__init__(tokens, "resampler=roi_tokencut", [1.0] * regions, bins, samples, whole, embed_boxes)
        self.of: Literal["features", "keys"] = of
        self.centred, self.threshold = centred, threshold
        self.reads: frozenset[Reads] = frozenset({"keys"} if of == "keys" else ())

    @torch.no_grad()
    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        grid, features = grid_in(tokens), compared(tokens, self.of, self.centred)
        edges = (features @ features.transpose(1, 2) > self.threshold).double()
        edges = edges.clamp(min=FAINT)  # in fp64, where 1e-5 beside sums of hundreds is seen

        def find(left: Bool[Tensor, "i n"]) -> Bool[Tensor, "i n"]:
            found, seed = cut_object(edges, left)
            return component(found.unflatten(1, grid), seed).flatten(1)

        return Regions(objects(find, tokens, self.regions, least=2))


def cut_object(
    edges: Float[Tensor, "i n n"], left: Bool[Tensor, "i n"]
) -> tuple[Bool[Tensor, "i n"], Int[Tensor, "i"]]:
    """The side of the normalised cut that holds the patch with the largest absolute value, and that patch.

    Args:
        left: the patches that are there, two or more in each row.
    """
    both = left[:, None] & left[:, :, None]
    weights = edges * both
    scale = weights.sum(2).clamp(min=FAINT).rsqrt() * left
    # D^-1/2 (D - W) D^-1/2 has the same eigenvalues, and is symmetric; nodes that have gone come last
    one = torch.eye(left.shape[1], dtype=edges.dtype, device=edges.device)
    laplacian = one - scale[:, None] * weights * scale[:, :, None]
    laplacian = laplacian + one * ((BEYOND - 1) * ~left[:, None]).to(edges.dtype)
    second = torch.linalg.eigh(laplacian).eigenvectors[..., 1] * scale
    mean = second.sum(1, keepdim=True) / left.sum(1, keepdim=True).clamp(min=1)
    size = second.abs().masked_fill(~left, -1.0)
    # patches with the same neighbours have the same value, but for rounding: the first of them on every machine
    seed = (size >= size.amax(1, keepdim=True) * (1 - EQUAL)).long().argmax(1)
    above = second > mean
    side = above == above.gather(1, seed[:, None])
    return side & left, seed
