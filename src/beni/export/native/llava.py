"""LLaVA and LLaVA-1.5 (arXiv 2310.03744): hidden state of an encoder, two layers, any llm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from beni.connector.mlp import MlpConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, unlike
from beni.export.native.processors import one_view
from beni.export.native.tensors import below, encoder, encoder_config, encoder_state, llm_config, llm_state, renamed
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.none import NoResampler
from beni.selector.none import NoSelector
from beni.views.single import SingleView
from beni.vision.backbone import model_inputs
from beni.vision.hf import HFVision

PARTS = {
    "views": Expected(SingleView, "single"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(NoResampler, "none"),
    "connector": Expected(MlpConnector, "mlp2x_gelu"),
}
PROJECTOR = (("layers.0", "linear_1"), ("layers.1", "linear_2"))


class Llava(Family):
    """``LlavaForConditionalGeneration``. Blocks of the encoder that are not read are not written."""

    architecture = LlavaForConditionalGeneration

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from unlike_llava(model)
        if isinstance(views := model.views, SingleView) and views.newline is not None:
            yield "views.newline=true, expected false"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> LlavaConfig:
        return LlavaConfig(
            vision_config=encoder_config(model),
            text_config=llm_config(model, vocabulary.size),
            image_token_index=vocabulary.image,
            image_seq_length=model.specs["llm"].n,
            **features(model),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        return llava_weights(model)

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        return {} if shown is None else stacked(shown)

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaProcessor:
        return LlavaProcessor(one_view(model), tokenizer, chat_template=template, **patches(model))


def stacked(shown: Shown) -> dict[str, Any]:
    """The views of all images one after another."""
    return {"pixel_values": torch.stack([view for views in shown.views for view in views])}


def unlike_llava(model: BeniForConditionalGeneration) -> Iterator[str]:
    """What LLaVA's encoder and connector cannot be."""
    if isinstance(connector := model.connector, MlpConnector):
        widths = [layer.out_features for layer in connector.layers]
        if len(widths) != 2 or widths[0] != widths[1]:
            yield f"the connector has layers of {widths}, expected two of the llm's width (connector=mlp2x_gelu)"
        if not isinstance(connector.norm, nn.Identity):
            yield "connector.norm standardises features, expected none"
    if isinstance(vision := model.vision, HFVision):
        if vision.layer == -1 and normed_at_the_end(vision):
            yield "vision.layer=-1 is read after the encoder's last norm, expected -2 or the like, before it"
        if vision.layout.prefix > 1:
            yield f"the encoder has {vision.layout.prefix} tokens beside patches, expected 1 or none"


@torch.no_grad()
def normed_at_the_end(vision: HFVision) -> bool:
    """Whether an encoder norms its last hidden state."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *vision.transform.shape, generator=draw)
    out = vision.model(**model_inputs(vision.model, pixels), output_hidden_states=True)
    return not torch.equal(out.hidden_states[-1], out.last_hidden_state)


def features(model: BeniForConditionalGeneration) -> dict[str, Any]:
    """Which features of the encoder LLaVA reads: of the last block that was built, with CLS or without."""
    vision = encoder(model)
    return {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": strategy(vision),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": cast(MlpConnector, model.connector).layers[0].bias is not None,
        "tie_word_embeddings": bool(llm_config(model, 1).tie_word_embeddings),
    }


def strategy(vision: HFVision) -> str:
    """Whether the first token of the encoder is left out."""
    return "default" if vision.layout.prefix and not vision.keep_cls else "full"


def patches(model: BeniForConditionalGeneration) -> dict[str, Any]:
    """How the processors of LLaVA count the placeholders of a view."""
    vision = encoder(model)
    return {
        "patch_size": vision.transform.shape[0] // vision.patches[0],
        "num_additional_image_tokens": vision.layout.prefix,
        "vision_feature_select_strategy": strategy(vision),
    }


def llava_weights(model: BeniForConditionalGeneration) -> dict[str, Tensor]:
    """The weights of encoder, connector and llm under the names that LLaVA and LLaVA-NeXT share."""
    return {
        **encoder_state(model, "model.vision_tower."),
        **renamed(below(model.connector, "model.multi_modal_projector."), PROJECTOR),
        **llm_state(model, "model.language_model."),
    }
