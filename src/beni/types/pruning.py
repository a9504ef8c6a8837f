"""What makes image tokens leave the llm between two of its layers, and what a rule for that is shown.

The rules are parts (``beni.pruner``); the llm applies them, because it alone knows its layers and their attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Attention(Protocol):
    """The attention of one layer, as it was computed on the tokens that are there."""

    def keys(self) -> Float[Tensor, "s kv l dk"]:
        """The keys of every token, as queries meet them: normed and rotated."""
        ...

    def weights(self, columns: Int[Tensor, "s r"]) -> Float[Tensor, "s h r l"]:
        """What the tokens at some columns of each sample attend to: every head's weights after the softmax."""
        ...


@dataclass(frozen=True)
class Candidates:
    """The tokens in front of the layer before which some leave: a row a sample, real ones first.

    Attributes:
        hidden: what the layer would be given.
        real: False at padding.
        image: True at those that may leave: image tokens before the sample's first answer.
        asked: True before the sample's first answer.
        raters: True at text that was chosen to judge (``Pruning.raters``); nowhere where none is.
        words: the columns of all that may not leave; others where a sample has fewer of them.
        keep: how many of each sample's image tokens are to stay.
        attention: of the layer that the cut looks at.
    """

    hidden: Float[Tensor, "s l d"]
    real: Bool[Tensor, "s l"]
    image: Bool[Tensor, "s l"]
    asked: Bool[Tensor, "s l"]
    raters: Bool[Tensor, "s l"]
    words: Int[Tensor, "s r"]
    keep: Int[Tensor, "s"]
    attention: Attention

    @property
    def last(self) -> Int[Tensor, "s"]:
        """The column at which a sample's first answer is predicted: the last one before it."""
        return (self.asked.sum(1) - 1).clamp(min=0)


Score = Callable[[Candidates], Float[Tensor, "s l"]]
"""How much each token is worth; of a sample's image tokens those with the highest stay. Without a gradient. Its matrix
products are billed as proportional to the tokens that are there or, where words judge, to those times the words.
"""

Raters = Callable[
    [Float[Tensor, "s m d"], Bool[Tensor, "s m"], Float[Tensor, "s r d"], Bool[Tensor, "s r"]], Bool[Tensor, "s r"]
]
"""Embeddings of a sample's image tokens (False at padding), and of its other tokens (True at text between its first
image and its first answer) -> True at the text that is to judge.
"""

Clusters = Callable[[Float[Tensor, "n d"], int], tuple[Int[Tensor, "c"], Int[Tensor, "n"]]]
"""Tokens and a number of clusters -> the centre of each, and the cluster of each token."""


@dataclass(frozen=True)
class Recycling:
    """Some of the tokens that would leave are averaged by clusters, and stay as the mean at each cluster's centre.

    Attributes:
        share: of the leaving tokens, those with the highest scores, that is averaged; one more than that.
        size: tokens for which there is one cluster; one more than that.
        clusters: finds them.
    """

    share: float
    size: int
    clusters: Clusters

    def counts(self, leaving: int) -> tuple[int, int]:
        """How many of so many leaving tokens are averaged, and the clusters that are made of them."""
        if not leaving:
            return 0, 0
        averaged = min(leaving, int(leaving * self.share) + 1)
        return averaged, min(averaged, averaged // self.size + 1)


@dataclass(frozen=True)
class Cut:
    """What happens before one decoder layer.

    Attributes:
        share: of a sample's image tokens, as many as there were at first, that stay.
        score: which ones.
        sees: whose attention ``score`` is shown: that of the layer ``before`` the cut, or what the ``next`` one would
            compute on all tokens that arrive.
        recycling: what becomes of those that leave; None for nothing.
    """

    share: float
    score: Score
    sees: Literal["before", "next"]
    recycling: Recycling | None = None

    def keep(self, first: int, now: int) -> int:
        """How many of ``now`` image tokens stay as they are, of a sample that had ``first``: one at least."""
        return min(now, max(1, int(first * self.share + 1e-6)))

    def left(self, first: int, now: int) -> int:
        """How many are there after the cut, those that stand for clusters included."""
        kept = self.keep(first, now)
        return kept if self.recycling is None else kept + self.recycling.counts(now - kept)[1]


@dataclass(frozen=True)
class Pruning:
    """How image tokens leave an llm while it reads a sequence.

    Attributes:
        cuts: by the number of the decoder layer before which they leave, from 1 on.
        raters: chooses, before the first layer, the text that judges; None where ``score`` asks for none.
        compact: those that stay move up to the first positions of their sample; else they keep their own.
        counts: image tokens of every sample behind each cut, where it is not to be what the cuts say: for dry runs.
    """

    cuts: Mapping[int, Cut]
    raters: Raters | None = None
    compact: bool = False
    counts: Mapping[int, int] = field(default_factory=dict)

    def left(self, images: int) -> dict[int, int]:
        """How many of so many image tokens are left behind each cut, by its layer."""
        found, now = {}, images
        for layer, cut in sorted(self.cuts.items()):
            found[layer] = now = cut.left(images, now)
        return found
