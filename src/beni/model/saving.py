"""A trained model with all that somebody needs who has only its folder: weights, tokenizer, template, end tokens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from beni.data.render.identity import specimen
from beni.data.render.template import Renderer
from beni.data.render.tokens import SpecialTokens
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor
from beni.model.speaking import LONGEST_ANSWER


def save(
    model: BeniForConditionalGeneration, renderer: Renderer, folder: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Writes a folder that ``AutoModel``, ``AutoTokenizer`` and ``AutoProcessor`` read.

    Args:
        renderer: of the run: its template, system message and tokenizer.
        state: the weights, of a sharded model; its own when None.
    """
    describe(model, renderer)
    model.save_pretrained(folder, state_dict=state)  # which empties it
    BeniProcessor(renderer.tokenizer, model.config).save_pretrained(folder)


def describe(model: BeniForConditionalGeneration, renderer: Renderer) -> None:
    """Tells a model the template that it was trained with, and the end tokens of its answers."""
    told = {"jinja": renderer.jinja, "hash": renderer.hash(), "specimen": specimen(renderer)}
    model.config.template = renderer.settings | told
    model.generation_config = generation_defaults(renderer.tokens)


def generation_defaults(tokens: SpecialTokens) -> GenerationConfig:
    """Greedy, up to one of the end tokens that answers were trained with."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        bos_token_id=tokens.bos,
        pad_token_id=tokens.pad,
        eos_token_id=list(tokens.eos),
    )
