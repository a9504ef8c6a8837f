"""FLOPs of micro-batches, by component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from beni.components import COMPONENTS


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one micro-batch or several.

    Attributes:
        components: useful ones, by component; causal attention in full.
        causal: of these, what causal attention need not compute: half of its products.
        recomputed: what activation checkpointing computes again, beside the useful ones.
        padding: what positions that hold nothing cost, beside the useful ones.
    """

    components: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 0))
    causal: int = 0
    recomputed: int = 0
    padding: int = 0

    @property
    def useful(self) -> int:
        return sum(self.components.values())

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount.of([a + b for a, b in zip(self.values(), other.values(), strict=True)])

    def scaled(self, component: str, share: float) -> FlopCount:
        """The FLOPs with only a share of one component: a feature bank has the rest."""
        return replace(self, components=self.components | {component: round(self.components[component] * share)})

    def values(self) -> list[int]:
        """The numbers as a list, for sums over ranks."""
        return [*(self.components[name] for name in COMPONENTS), self.causal, self.recomputed, self.padding]

    @staticmethod
    def of(values: Sequence[int]) -> FlopCount:
        """The inverse of ``values``."""
        rest = values[len(COMPONENTS) :]
        return FlopCount(dict(zip(COMPONENTS, values, strict=False)), *rest)
