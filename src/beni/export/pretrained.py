"""A ``save_pretrained`` folder with its tokenizer: ``import beni; AutoModel.from_pretrained(folder)`` needs no run."""

from __future__ import annotations

from beni.data.render.template import Renderer
from beni.export.formats import Export
from beni.llm.tokenizer import load_tokenizer
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.saving import save


def write(model: BeniForConditionalGeneration, export: Export) -> None:
    """Writes model, tokenizer, template and processor into ``export.out``."""
    save(model, Renderer(load_tokenizer(export.run["llm"]), export.run["template"]), export.out)
