"""No adapter. A plan that asks for ``lora`` is refused while this option is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from beni.adapter.base import Adapter
from beni.errors import CompositionError


class NoAdapter(Adapter):
    """Refuses every component."""

    def inject(self, component: nn.Module, name: str) -> None:
        raise _refusal()

    def reset(self, component: nn.Module) -> None:
        raise _refusal()

    def bare(self, component: nn.Module) -> Iterator[tuple[str, Tensor]]:
        raise _refusal()

    def merge(self, component: nn.Module) -> None:
        raise _refusal()

    def save(self, component: nn.Module, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
        raise _refusal()

    def load(self, component: nn.Module, folder: Path) -> None:
        raise _refusal()

    def require_alike(self, other: Mapping[str, Any], source: str) -> None:
        raise _refusal()


def _refusal() -> CompositionError:
    return CompositionError(
        "E-ADAPTER", "the plan has lora but adapter=none", groups=("adapter",), fix="set adapter=lora"
    )
