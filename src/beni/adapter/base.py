"""Adapters: small trained weights beside frozen ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Adapter(ABC):
    """Puts adapters into a component whose plan is ``lora``, and takes them out again. Subclasses are final.

    Every parameter and buffer of an adapter has ``lora_`` in its name.
    """

    @abstractmethod
    def inject(self, component: nn.Module, name: str) -> None:
        """Adds adapter weights inside ``component``, in place; what it computes stays as it is, up to rounding.

        Args:
            name: of the component, for instance ``llm``.

        Raises:
            CompositionError: when ``component`` has no module that the adapter's targets name.
        """

    @abstractmethod
    def reset(self, component: nn.Module) -> None:
        """Begins anew beside the weights that ``component`` has now, drawing what ``inject`` has drawn."""

    @abstractmethod
    def bare(self, component: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the weights that ``inject`` has changed, as they were before."""

    @abstractmethod
    def merge(self, component: nn.Module) -> None:
        """Adds the adapters to the weights they stand beside, and removes them, in place."""

    @abstractmethod
    def save(self, component: nn.Module, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
        """Writes the adapters of ``component``, which has the tensors ``state``, as peft does.

        Args:
            base: where the weights beside them come from, for instance a hub id.
        """

    @abstractmethod
    def load(self, component: nn.Module, folder: Path) -> None:
        """Reads what ``save`` has written.

        Raises:
            ResumeError: when there is nothing in ``folder``, those adapters do not fit into these, or would compute
                something else here.
        """

    @abstractmethod
    def require_alike(self, other: Mapping[str, Any], source: str) -> None:
        """Makes sure that the tensors of adapters of the node ``other``, found in ``source``, compute the same here.

        Raises:
            ResumeError: when they do not, though names and shapes may agree.
        """
