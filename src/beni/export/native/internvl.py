"""InternVL 1.5 to 3 (arXiv 2404.16821, 2504.10479): tiles and a thumbnail, pixel shuffle, LayerNorm and two layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerBase,
    QianfanOCRProcessor,
)

from beni.connector.mlp import MlpConnector
from beni.data.render.tokens import IMAGE
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.idefics3 import unlike_shuffle
from beni.export.native.llava import stacked, strategy
from beni.export.native.processors import named_tokens, normalisation, require_token, sized
from beni.export.native.tensors import below, encoder, encoder_config, encoder_state, llm_config, llm_state, renamed
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.pixel_shuffle import PixelShuffle
from beni.selector.none import NoSelector
from beni.views.internvl import InternVlTiles

PARTS = {
    "views": Expected(InternVlTiles, "internvl"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(PixelShuffle, "pixel_shuffle"),
    "connector": Expected(MlpConnector, "mlp2x_gelu"),
}
PROJECTOR = (("norm.", "layer_norm."), ("layers.0", "linear_1"), ("layers.1", "linear_2"))


class InternVl(Family):
    """``InternVLForConditionalGeneration``."""

    architecture = InternVLForConditionalGeneration
    notes = (
        "The processor is QianfanOCRProcessor, which writes what InternVLProcessor does; that one wants a video "
        "processor and so torchvision.",
    )

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from last_state(model)
        yield from unlike_shuffle(model)
        if isinstance(shuffle := model.resampler, PixelShuffle) and shuffle.r & (shuffle.r - 1):
            yield f"resampler.r={shuffle.r}, expected a power of 2"
        if isinstance(views := model.views, InternVlTiles):
            if views.join:
                yield "views.join=true, expected false"
            if not (views.thumbnail and views.start and views.end):
                yield "views.thumbnail, views.start and views.end, expected all three"
        if isinstance(connector := model.connector, MlpConnector):
            widths = [layer.out_features for layer in connector.layers]
            if len(widths) != 2 or widths[0] != widths[1] or connector.layers[0].bias is None:
                yield f"the connector has layers of {widths}, expected two of the llm's width with biases"
            if not isinstance(connector.norm, nn.LayerNorm):
                yield "connector.norm, expected layernorm"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> InternVLConfig:
        text = llm_config(model, vocabulary.size)
        return InternVLConfig(
            vision_config=encoder_config(model),
            text_config=text,
            image_token_id=vocabulary.image,
            image_seq_length=model.specs["connector"].n,
            downsample_ratio=1 / cast(PixelShuffle, model.resampler).r,
            vision_feature_layer=-1,
            vision_feature_select_strategy=strategy(encoder(model)),
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        return {
            **encoder_state(model, "model.vision_tower."),
            **renamed(below(model.connector, "model.multi_modal_projector."), PROJECTOR),
            **llm_state(model, "model.language_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        return {} if shown is None else stacked(shown)

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> QianfanOCRProcessor:
        views = cast(InternVlTiles, model.views)
        for token in (views.start, views.end):
            require_token(tokenizer, token, "QianfanOCRProcessor")
        images = GotOcr2ImageProcessorPil(
            size=sized(model),
            crop_to_patches=True,
            min_patches=min(rows * columns for rows, columns in views.arrangements),
            max_patches=max(rows * columns for rows, columns in views.arrangements),
            **normalisation(model),
        )
        named = named_tokens(
            tokenizer, start_image_token=views.start, end_image_token=views.end, context_image_token=IMAGE
        )
        tokens = model.specs["connector"].n
        return QianfanOCRProcessor(images, named, image_seq_length=tokens, chat_template=template)
