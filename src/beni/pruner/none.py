"""No pruner: image tokens stay in the llm from its first layer to its last."""

from __future__ import annotations

from beni.pruner.base import Pruner
from beni.types import Pruning


class NoPruner(Pruner):
    """Nothing leaves."""

    @property
    def prunes(self) -> bool:
        return False

    def plan(self, depth: int) -> Pruning:
        return Pruning({})
