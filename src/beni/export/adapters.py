"""All but frozen backbones: adapters as folders of peft, and what stands between the backbones (model/adapters.py)."""

from __future__ import annotations

from beni.export.formats import Export


def write(export: Export) -> None:
    """Writes the adapter folder ``export.out``."""
    export.trained.model.save_adapters(export.out)
