"""PaliGemma (arXiv 2407.07726): SigLIP, one matrix, a Gemma that sees image and question both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlavaProcessor, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedTokenizerBase

from beni.connector.pali import PaliConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.llava import stacked
from beni.export.native.processors import counted, one_view, typed
from beni.export.native.tensors import below, encoder_config, encoder_state, llm_config, llm_state
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.none import NoResampler
from beni.selector.none import NoSelector
from beni.views.single import SingleView

PARTS = {
    "views": Expected(SingleView, "single"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(NoResampler, "none"),
    "connector": Expected(PaliConnector, "pali"),
}
LLMS = ("gemma", "gemma2")


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``."""

    architecture = PaliGemmaForConditionalGeneration
    notes = (
        "The processor is LlavaProcessor: PaliGemmaProcessor writes a prompt of its own, the bos token behind "
        "the image and a line break at the end.",
    )

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS, attention=("prefix",))
        yield from last_state(model, ("siglip_vision_model",))
        if (kind := model.llm.describe().kind) not in LLMS:
            yield f"llm.architecture.model_type={kind}, expected {' or '.join(LLMS)}"
        if isinstance(views := model.views, SingleView) and views.newline is not None:
            yield "views.newline=true, expected false"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> PaliGemmaConfig:
        text, width = llm_config(model, vocabulary.size), model.llm.hidden_size
        return PaliGemmaConfig(
            vision_config=encoder_config(model),
            text_config=text,
            image_token_index=vocabulary.image,
            vocab_size=vocabulary.size,
            projection_dim=width,
            hidden_size=width,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        return {
            **encoder_state(model, "model.vision_tower."),
            **below(cast(PaliConnector, model.connector).proj, "model.multi_modal_projector.linear."),
            **llm_state(model, "model.language_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        return {"token_type_ids": torch.zeros_like(ids)} | ({} if shown is None else stacked(shown))

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaProcessor:
        return counted(one_view(model), typed(tokenizer), template, model.specs["llm"].n)
