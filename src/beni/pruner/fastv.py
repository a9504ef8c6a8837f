"""FastV (arXiv 2403.06764): of the image tokens, those that the end of the prompt attends to least leave early.

Reference: ``modeling_llama.py`` of the release (pkunlp-icler/FastV). Deviations: any number of samples and images,
wherever they stand; the score is that of the last position before the first answer, in training as in generation.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.pruner.base import Pruner, cuts_before, last_attention
from beni.types import Cut, Pruning


class FastV(Pruner):
    """Keeps the image tokens with the highest attention, averaged over heads, in the layer before the cut.

    Args:
        layer: number of the decoder layer before which tokens leave, from 1 on (K of the paper).
        keep: share of a sample's image tokens that stays (1 - R of the paper).
        positions: ``preserve``: those that stay keep their positions; ``compact``: they move up.
    """

    def __init__(
        self,
        *,
        layer: Annotated[int, AtLeast(1)],
        keep: Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
    ) -> None:
        self.layer, self.keep, self.positions = layer, keep, positions

    @property
    def prunes(self) -> bool:
        return self.keep < 1

    def plan(self, depth: int) -> Pruning:
        cut = partial(Cut, score=last_attention, sees="before")
        return Pruning(cuts_before([self.layer], [self.keep], depth, cut), compact=self.positions == "compact")
