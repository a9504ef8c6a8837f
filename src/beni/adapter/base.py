"""Adapters: small trained weights beside frozen ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Adapter(ABC):
    """Puts adapters into a component whose plan is ``lora``. Subclasses are final."""

    @abstractmethod
    def inject(self, component: nn.Module) -> None:
        """Add adapter weights inside ``component``, in place; at once its output is unchanged.

        Raises:
            CompositionError: when ``component`` has no module that the adapter's targets name.
        """
