"""PyramidDrop (arXiv 2410.17247): image tokens leave in several steps, the deeper in the llm the more.

Reference: ``pdrop_rank_drop`` in ``modeling_llama_pdrop.py`` of the release (Cooperx521/PyramidDrop). Before each step
the next layer's own norm, queries and keys rank the tokens. Deviations: the release averages, in training, over the
positions before every answer of a conversation, and so lets the choice know earlier answers; here the first such
position decides, in training as in generation. The release renumbers positions (``positions: compact``).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from beni.config.ranges import Above, AtLeast, AtMost
from beni.pruner.base import Pruner, cuts_before, last_attention
from beni.types import Cut, Pruning


class PyramidDrop(Pruner):
    """Keeps, before each of some layers, the image tokens that the end of the prompt would attend to most in it.

    Args:
        layers: numbers of the decoder layers before which tokens leave, from 1 on; ``auto`` cuts the llm into parts of
            equal depth.
        keep: share of a sample's image tokens, as many as there were at first, that is left behind each.
        positions: ``preserve``: those that stay keep their positions; ``compact``: they move up.
    """

    def __init__(
        self,
        *,
        layers: list[Annotated[int, AtLeast(1)]] | Literal["auto"],
        keep: list[Annotated[float, Above(0), AtMost(1)]],
        positions: Literal["preserve", "compact"],
    ) -> None:
        self.layers, self.keep, self.positions = layers, keep, positions

    @property
    def prunes(self) -> bool:
        return any(share < 1 for share in self.keep)

    def plan(self, depth: int) -> Pruning:
        parts = len(self.keep) + 1
        equal = [depth * part // parts for part in range(1, parts)]
        layers = self.layers if isinstance(self.layers, list) else equal
        cut = partial(Cut, score=last_attention, sees="next")
        return Pruning(cuts_before(layers, self.keep, depth, cut), compact=self.positions == "compact")
