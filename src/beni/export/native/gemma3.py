"""Gemma 3 (arXiv 2503.19786): SigLIP, pooling, norm and one matrix; the tokens of an image see each other both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from beni.connector.identity import IdentityConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.llava import stacked
from beni.export.native.processors import counted, one_view
from beni.export.native.tensors import encoder_config, encoder_state, llm_config, llm_state
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.gemma3 import Gemma3 as Gemma3Resampler
from beni.selector.none import NoSelector
from beni.views.single import SingleView

PARTS = {
    "views": Expected(SingleView, "single"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(Gemma3Resampler, "gemma3"),
    "connector": Expected(IdentityConnector, "auto"),
}


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration``."""

    architecture = Gemma3ForConditionalGeneration
    separator = "\n"
    notes = (
        "The processor is LlavaProcessor: Gemma3Processor writes tokens of Gemma's own and line breaks around images. "
        "It gives no token_type_ids, without which the tokens of an image do not see each other: pass "
        "token_type_ids=(input_ids == model.config.image_token_id).long() beside what it gives.",
        "The class takes images that follow one another for one whose tokens see each other: put text between them.",
    )

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS, attention=("image",))
        yield from last_state(model, ("siglip_vision_model",))
        if (kind := model.llm.describe().kind) != "gemma3_text":
            yield f"llm.architecture.model_type={kind}, expected gemma3_text"
        if isinstance(views := model.views, SingleView) and views.newline is not None:
            yield "views.newline=true, expected false"
        if isinstance(resampler := model.resampler, Gemma3Resampler) and resampler.norm.weight is None:
            yield "resampler.norm_weight=false, expected true"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> Gemma3Config:
        text = llm_config(model, vocabulary.size)
        return Gemma3Config(
            vision_config=encoder_config(model),
            text_config=text,
            image_token_index=vocabulary.image,
            mm_tokens_per_image=model.specs["resampler"].n,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        resampler = cast(Gemma3Resampler, model.resampler)
        projector = "model.multi_modal_projector."
        return {
            **encoder_state(model, "model.vision_tower."),
            projector + "mm_soft_emb_norm.weight": resampler.norm.weight.detach() - 1,
            projector + "mm_input_projection_weight": resampler.proj.weight.detach().T.contiguous(),
            **llm_state(model, "model.language_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        if shown is None:
            return {}
        return {"token_type_ids": (ids == image).long(), **stacked(shown)}

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaProcessor:
        return counted(one_view(model), tokenizer, template, model.specs["llm"].n)
