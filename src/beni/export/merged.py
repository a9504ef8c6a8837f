"""As ``pretrained``, with the adapters added to the weights: whoever loads it needs no peft."""

from __future__ import annotations

from beni.export import pretrained
from beni.export.formats import Export


def write(export: Export) -> None:
    """Writes the model without adapters, which it has none of afterwards, and its tokenizer into ``export.out``."""
    export.trained.model.merge_adapters()
    pretrained.write(export)
