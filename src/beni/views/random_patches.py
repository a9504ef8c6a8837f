"""A finer look at random patches: the baseline of every way of choosing where the encoder looks (``views=ps3``).

While training, each sample is shown other patches in every step; in evaluation a sample always has the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from beni.views.two_looks import TwoLooks


class RandomPatches(TwoLooks):
    """``(2 i, n, d) -> (2 i, n, d)``, or ``-> (i, m, d)`` where both looks are joined.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        patches: (rows, columns) of patches that the encoder makes of it.
        times: the sides of the finer picture, as multiples of the encoder's.
        keep: patches of the finer picture that are kept: a whole number, or a share (a float, at most 1.0).
        seed: draws other patches for the same samples, so that two arms of a study may differ in nothing else.
        join: let the resampler see both looks at once.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        times: Annotated[int, AtLeast(2)],
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        seed: Annotated[int, AtLeast(0)],
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, patches, times, keep, gated=False, join=join)
        self.seed = seed

    def rates(
        self, whole: VisualTokens, finer: Float[Tensor, "i 3 height width"], context: StageContext
    ) -> Float[Tensor, "i n"]:
        drawn = context if self.training else replace(context, step=0)
        like = whole.x.new_empty(len(finer), self.grid[0] * self.grid[1])
        return drawn.noise(f"order {self.seed}", like)

    def gates(self, rates: Float[Tensor, "i n"]) -> None:
        return None
