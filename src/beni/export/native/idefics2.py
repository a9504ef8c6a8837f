"""Idefics2 (arXiv 2405.02246): the image at its own shape and its quarters, projected, then read by a perceiver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    PreTrainedTokenizerBase,
)

from beni.connector.identity import IdentityConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.processors import named_tokens, normalisation, require_token
from beni.export.native.tensors import below, encoder_config, encoder_state, llm_config, llm_state
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.perceiver_idefics2 import PerceiverIdefics2
from beni.selector.none import NoSelector
from beni.views.idefics2 import AROUND, Idefics2Views

PARTS = {
    "views": Expected(Idefics2Views, "idefics2"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(PerceiverIdefics2, "perceiver_idefics2"),
    "connector": Expected(IdentityConnector, "auto"),
}


class Idefics2(Family):
    """``Idefics2ForConditionalGeneration``."""

    architecture = Idefics2ForConditionalGeneration
    separator = "\n"
    notes = (
        "Idefics2ImageProcessor keeps sides that are no whole patches and masks what is left over, where beni squashes "
        "to whole patches, so pixels differ.",
        "Idefics2Processor puts a space between an image and a text that follows at once, and takes one tag for two "
        "where images follow one another: put a line break behind each image, as the compared prompts have.",
    )

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from last_state(model, ("idefics2_vision",))
        if isinstance(views := model.views, Idefics2Views) and views.join:
            yield "views.join=true, expected false"
        if isinstance(resampler := model.resampler, PerceiverIdefics2):
            inner, own = resampler.projection.up_proj.out_features, llm_config(model, 1).to_dict()["intermediate_size"]
            if inner != own:
                yield (
                    f"the resampler projects through {inner} channels, expected the llm's intermediate_size={own} "
                    f"(resampler.expansion={own / model.llm.hidden_size:g})"
                )
            if not resampler.perceiver.concat_latents:
                yield "resampler.concat_latents=false, expected true"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> Idefics2Config:
        perceiver = cast(PerceiverIdefics2, model.resampler).perceiver
        attention = perceiver.layers[0].self_attn
        text = llm_config(model, vocabulary.size)
        return Idefics2Config(
            vision_config=encoder_config(model).to_dict(),
            text_config=text,
            perceiver_config={
                "hidden_size": model.llm.hidden_size,
                "resampler_n_latents": perceiver.num_latents,
                "resampler_depth": perceiver.depth,
                "resampler_n_heads": attention.num_heads,
                "resampler_head_dim": attention.head_dim,
                "num_key_value_heads": attention.num_kv_heads,
            },
            image_token_id=vocabulary.image,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        resampler = cast(PerceiverIdefics2, model.resampler)
        return {
            **encoder_state(model, "model.vision_model."),
            **below(resampler.projection, "model.connector.modality_projection."),
            **below(resampler.perceiver, "model.connector.perceiver_resampler."),
            **llm_state(model, "model.text_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        if shown is None:
            return {}
        views = [view for image in shown.views for view in image]
        tall, wide = (max(view.shape[axis] for view in views) for axis in (1, 2))
        pixels = torch.zeros(1, len(views), 3, tall, wide)
        mask = torch.zeros(1, len(views), tall, wide, dtype=torch.long)
        for number, view in enumerate(views):
            pixels[0, number, :, : view.shape[1], : view.shape[2]] = view
            mask[0, number, : view.shape[1], : view.shape[2]] = 1
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> Idefics2Processor:
        require_token(tokenizer, AROUND, "Idefics2Processor")
        views = cast(Idefics2Views, model.views)
        images = Idefics2ImageProcessorPil(
            do_image_splitting=views.quarters,
            size={"shortest_edge": views.shortest, "longest_edge": views.longest},
            **normalisation(model),
        )
        named = named_tokens(tokenizer, image_boundary_token=AROUND)
        tokens = cast(PerceiverIdefics2, model.resampler).perceiver.num_latents
        return Idefics2Processor(images, named, image_seq_len=tokens, chat_template=template)
