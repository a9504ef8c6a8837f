"""No adapter. A plan that asks for ``lora`` is refused while this option is chosen."""

from __future__ import annotations

from torch import nn

from beni.adapter.base import Adapter
from beni.errors import CompositionError


class NoAdapter(Adapter):
    """Refuses every component."""

    def inject(self, component: nn.Module) -> None:
        raise CompositionError(
            "E-ADAPTER", "the plan has lora but adapter=none", groups=("adapter",), fix="adapter=lora"
        )
