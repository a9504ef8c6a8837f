"""Idefics3 and SmolVLM (arXiv 2408.12637, 2504.05299): tiles, pixel shuffle, one matrix. SmolVLM's two smaller models
compute what Idefics3 does; its processor wants a video processor and so torchvision, Idefics3's does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerBase,
)

from beni.connector.mlp import MlpConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.processors import normalisation, require_token
from beni.export.native.tensors import below, encoder_config, encoder_state, llm_config, llm_state, renamed
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.pixel_shuffle import PixelShuffle
from beni.selector.none import NoSelector
from beni.views.idefics3 import AROUND, Idefics3Tiles

PARTS = {
    "views": Expected(Idefics3Tiles, "idefics3"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(PixelShuffle, "pixel_shuffle"),
    "connector": Expected(MlpConnector, "linear"),
}
ENCODERS = ("idefics3_vision", "siglip_vision_model")
"""Idefics3's own encoder is SigLIP's; on squares of its own size both number their positions alike."""
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
FIELDS += ("num_channels", "hidden_act", "layer_norm_eps", "attention_dropout")


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``."""

    architecture = Idefics3ForConditionalGeneration

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from last_state(model, ENCODERS)
        yield from unlike_shuffle(model)
        if isinstance(views := model.views, Idefics3Tiles) and views.join:
            yield "views.join=true, expected false"
        if isinstance(connector := model.connector, MlpConnector):
            if len(connector.layers) != 1 or connector.layers[0].bias is not None:
                yield "the connector has several layers or a bias, expected neither (connector.bias=false)"
            if not isinstance(connector.norm, nn.Identity):
                yield "connector.norm standardises features, expected none"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> Idefics3Config:
        vision, text = encoder_config(model).to_dict(), llm_config(model, vocabulary.size)
        return Idefics3Config(
            vision_config={name: vision[name] for name in FIELDS},
            text_config=text,
            scale_factor=cast(PixelShuffle, model.resampler).r,
            image_token_id=vocabulary.image,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        return {
            **encoder_state(model, "model.vision_model."),
            **renamed(below(model.connector, "model.connector.modality_projection."), [("layers.0", "proj")]),
            **llm_state(model, "model.text_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        if shown is None:
            return {}
        return {"pixel_values": torch.stack([view for image in shown.views for view in image])[None]}

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> Idefics3Processor:
        require_token(tokenizer, AROUND, "Idefics3Processor")
        views = cast(Idefics3Tiles, model.views)
        side = views.tile[0]
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": views.longest * side}, max_image_size={"longest_edge": side}, **normalisation(model)
        )
        tokens = model.specs["connector"].n
        return Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template)


def unlike_shuffle(model: BeniForConditionalGeneration) -> Iterator[str]:
    """What the pixel shuffle of Idefics3 and InternVL cannot be."""
    if isinstance(shuffle := model.resampler, PixelShuffle):
        if shuffle.merge is not None or not isinstance(shuffle.norm, nn.Identity):
            yield "resampler.merge and resampler.norm, expected neither"
        grid = model.specs["vision"].grid
        if grid is None or grid[0] != grid[1] or grid[0] % shuffle.r:
            yield f"the encoder's grid is {grid}, expected a square whose sides resampler.r={shuffle.r} divides"
