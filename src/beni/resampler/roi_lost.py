"""Boxes of objects that are found without labels: LOST (arXiv 2109.14279), on the encoder's patches.

Patches are alike where their product is positive. Patches of an object are alike to few others, since objects are
smaller than what is around them; so the one that is alike to fewest is a seed. Of the ``seeds`` patches that are alike
to fewest, those alike to the seed join it, and whatever is alike to their sum, and hangs together with the seed, is the
object. The rule was derived from the paper; the tests write it out patch by patch. It works best with features in which
patches of one object agree and others do not, as DINO's do, and on keys of attention.

Deviations: the paper finds one object; here its patches are left out, and the next is sought among the others, until
there are ``regions`` or no patch is left, when windows at even distances take their places. Keys are means over heads,
there they are side by side. ``centred=true`` subtracts the mean patch first, for encoders that make all patches
alike; the paper does not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import AtLeast
from beni.nn.boxes import component
from beni.resampler.roi import RegionProposer, Regions, compared, grid_in, objects
from beni.stage import Reads, StageContext
from beni.types import TokenSpec, VisualTokens


class LostRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: boxes around objects, the most apart first.

    Args:
        tokens: spec of the incoming visual tokens.
        regions: boxes of each view.
        of: what is compared: the patches' ``features``, or the encoder's ``keys`` of its last attention that is read.
        centred: subtract the mean of a view's patches first.
        seeds: patches that may join the seed.
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
        seeds: Annotated[int, AtLeast(1)],
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        super().__init__(tokens, "resampler=roi_lost", [1.0] * regions, bins, samples, whole, embed_boxes)
        self.of: Literal["features", "keys"] = of
        self.centred, self.seeds = centred, seeds
        self.reads: frozenset[Reads] = frozenset({"keys"} if of == "keys" else ())

    @torch.no_grad()
    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        grid, features = grid_in(tokens), compared(tokens, self.of, self.centred)
        alike = features @ features.transpose(1, 2)  # (i, n, n)

        def find(left: Bool[Tensor, "i n"]) -> Bool[Tensor, "i n"]:
            found, seed = lost_object(alike, left, self.seeds)
            return component(found.unflatten(1, grid), seed).flatten(1)

        return Regions(objects(find, tokens, self.regions))


def lost_object(
    alike: Float[Tensor, "i n n"], left: Bool[Tensor, "i n"], seeds: int
) -> tuple[Bool[Tensor, "i n"], Int[Tensor, "i"]]:
    """What LOST takes for an object among the patches that are ``left``, and its seed.

    Args:
        alike: products of patches.
        seeds: patches that may join the seed.
    """
    n = left.shape[1]
    degree = ((alike > 0) & left[:, None]).sum(2).masked_fill(~left, n + 1)
    order = torch.argsort(degree, dim=1, stable=True)
    rows, seed = torch.arange(len(left), device=left.device), order[:, 0]
    lowest = torch.zeros_like(left).scatter(1, order[:, :seeds], True) & left
    joined = lowest & (alike[rows, seed] >= 0)
    found = ((alike * joined[:, None]).sum(2) >= 0) & left
    return found, seed
