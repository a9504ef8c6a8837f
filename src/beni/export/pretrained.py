"""A ``save_pretrained`` folder with its tokenizer: ``import beni; AutoModel.from_pretrained(folder)`` needs no run."""

from __future__ import annotations

from beni.export.formats import Export
from beni.llm.tokenizer import load_tokenizer
from beni.model.modeling import BeniForConditionalGeneration


def write(model: BeniForConditionalGeneration, export: Export) -> None:
    """Writes model and tokenizer into ``export.out``."""
    model.save_pretrained(export.out)
    load_tokenizer(export.run["llm"]).save_pretrained(export.out)
