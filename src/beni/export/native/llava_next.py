"""LLaVA-NeXT (blog post, January 2024): LLaVA on the whole image and on the tiles of the canvas that fits it best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerBase,
)

from beni.export.native.base import Expected, Family, Shown, Vocabulary, unlike
from beni.export.native.llava import PARTS, features, llava_weights, patches, unlike_llava
from beni.export.native.processors import normalisation, sized
from beni.export.native.tensors import encoder_config, llm_config
from beni.model.modeling import BeniForConditionalGeneration
from beni.views.anyres import AnyRes


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``."""

    architecture = LlavaNextForConditionalGeneration

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS | {"views": Expected(AnyRes, "anyres")})
        yield from unlike_llava(model)
        if isinstance(views := model.views, AnyRes):
            if views.join:
                yield "views.join=true, expected false"
            if views.newline is None or not views.unpad:
                yield "views.newline and views.unpad, expected both true"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> LlavaNextConfig:
        return LlavaNextConfig(
            vision_config=encoder_config(model),
            text_config=llm_config(model, vocabulary.size),
            image_token_index=vocabulary.image,
            image_grid_pinpoints=canvases(model),
            **features(model),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        return {**llava_weights(model), "model.image_newline": cast(Tensor, model.views.newline).detach()}

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        if shown is None:
            return {}
        most = max(len(views) for views in shown.views)
        pixels = [torch.stack([*views, *[torch.zeros_like(views[0])] * (most - len(views))]) for views in shown.views]
        return {
            "pixel_values": torch.stack(pixels),
            "image_sizes": torch.tensor([layout.size for layout in shown.layouts]),
        }

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaNextProcessor:
        shape = sized(model)
        images = LlavaNextImageProcessorPil(
            size=shape,
            crop_size=shape,
            do_center_crop=False,
            image_grid_pinpoints=canvases(model),
            **normalisation(model),
        )
        return LlavaNextProcessor(images, tokenizer, chat_template=template, **patches(model))


def canvases(model: BeniForConditionalGeneration) -> list[list[int]]:
    """(height, width) in pixels of each canvas."""
    views = cast(AnyRes, model.views)
    return [[rows * views.tile[0], columns * views.tile[1]] for rows, columns in views.canvases]
