"""Pruners: which image tokens leave the llm between its layers, while it reads a sequence that they stand in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from beni.errors import CompositionError
from beni.types import Candidates, Cut, Pruning, Sequence


class Pruner(ABC):
    """Takes image tokens out of an llm. Without parameters; subclasses are final."""

    pruning: Pruning | None = None
    """What leaves the llm of this model, once it is known; None where nothing does."""

    @abstractmethod
    def plan(self, depth: int) -> Pruning:
        """What leaves an llm of ``depth`` layers.

        Raises:
            CompositionError: E-PLACE when there are no such layers.
        """

    @property
    @abstractmethod
    def prunes(self) -> bool:
        """Whether anything is to leave."""

    def install(self, depth: Callable[[], int], inline: bool) -> None:
        """Called once, when the llm and the fusion are known.

        Args:
            depth: layers of the llm.
            inline: each visual token takes a position of the llm.

        Raises:
            CompositionError: E-STACK when visual tokens take no positions, E-PLACE when there are no such layers.
        """
        if not self.prunes:
            return
        if not inline:
            raise CompositionError(
                "E-STACK",
                "visual tokens take no positions of the llm with this fusion, so there is nothing to prune in it",
                groups=("pruner", "fusion"),
                fix="set pruner=none, or fusion=inline",
            )
        self.pruning = self.plan(depth())

    def __call__(self, sequence: Sequence) -> Sequence:
        """The sequence, told what leaves it on its way; itself where it has no image."""
        if self.pruning is None or not bool(sequence.is_image.any()):
            return sequence
        return replace(sequence, pruning=self.pruning)


def cuts_before(layers: Listed[int], keep: Listed[float], depth: int, cut: Callable[[float], Cut]) -> dict[int, Cut]:
    """A cut before each of some layers, from the first on.

    Args:
        layers: numbers of layers, each above the one before.
        keep: the share of image tokens that is left behind each, none above the one before.
        depth: layers of the llm.
        cut: from such a share.

    Raises:
        CompositionError: E-PLACE when that is not so.
    """
    if list(layers) != sorted(set(layers)) or not layers or layers[0] < 1 or layers[-1] >= depth:
        raise _misplaced(
            f"image tokens should leave before the layers {list(layers)} of an llm with the layers 0 to {depth - 1}; "
            "expected ascending numbers of layers after the first",
            f"set pruner.layer, or pruner.layers, to some of 1 to {depth - 1}" if depth > 1 else "set pruner=none",
        )
    if len(keep) != len(layers) or list(keep) != sorted(keep, reverse=True):
        raise _misplaced(
            f"{len(layers)} layers have the shares {list(keep)}; expected one for each, none above the one before",
            f"give pruner.keep {len(layers)} falling shares",
        )
    return {layer: cut(share) for layer, share in zip(layers, keep, strict=True)}


def last_attention(candidates: Candidates) -> Float[Tensor, "s l"]:
    """How much the last position before a sample's first answer attends to each token: the mean over heads."""
    return candidates.attention.weights(candidates.last[:, None]).mean(1)[:, 0]


def _misplaced(message: str, fix: str) -> CompositionError:
    return CompositionError("E-PLACE", message, groups=("pruner", "llm"), fix=fix)
