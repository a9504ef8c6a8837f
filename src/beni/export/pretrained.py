"""A ``save_pretrained`` folder with its tokenizer: ``import beni; AutoModel.from_pretrained(folder)`` needs no run."""

from __future__ import annotations

from beni.export.formats import Export
from beni.model.saving import save


def write(export: Export) -> None:
    """Writes model, tokenizer, template and processor into ``export.out``."""
    save(export.trained.model, export.trained.renderer, export.out)
