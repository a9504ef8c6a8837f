"""All but frozen backbones: adapters as folders of peft, and what stands between the backbones (model/adapters.py)."""

from __future__ import annotations

from beni.export.formats import Export
from beni.model.modeling import BeniForConditionalGeneration


def write(model: BeniForConditionalGeneration, export: Export) -> None:
    """Writes the adapter folder ``export.out``."""
    model.save_adapters(export.out)
