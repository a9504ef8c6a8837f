"""BLIP-2 (arXiv 2301.12597): EVA-CLIP with CLS, a Q-Former, one matrix, any llm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from beni.connector.identity import IdentityConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.llava import stacked
from beni.export.native.processors import counted, one_view
from beni.export.native.tensors import below, encoder, encoder_config, encoder_state, llm_config, renamed
from beni.llm.hf import HFLlm
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.qformer import QFormer
from beni.selector.none import NoSelector
from beni.views.single import SingleView
from beni.vision.hf import HFVision

PARTS = {
    "views": Expected(SingleView, "single"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(QFormer, "qformer"),
    "connector": Expected(IdentityConnector, "auto"),
}
LAYER = (
    ("norm.", "layernorm."),
    ("layers.", "encoder.layer."),
    ("self_attn.o_proj", "attention.output.dense"),
    ("self_layernorm.", "attention.output.LayerNorm."),
    ("self_attn.", "attention.attention."),
    ("cross_attn.o_proj", "crossattention.output.dense"),
    ("cross_layernorm.", "crossattention.output.LayerNorm."),
    ("cross_attn.", "crossattention.attention."),
    ("q_proj.", "query."),
    ("k_proj.", "key."),
    ("v_proj.", "value."),
    ("mlp.fc1", "intermediate_query.dense"),
    ("mlp.fc2", "output_query.dense"),
    ("mlp_layernorm.", "output_query.LayerNorm."),
)
"""Names of the Q-Former's tensors here and there. The first pair renames every norm, which later pairs count on."""


class Blip2(Family):
    """``Blip2ForConditionalGeneration``."""

    architecture = Blip2ForConditionalGeneration
    reads_text_alone = False
    notes = (
        "The processor is LlavaProcessor: Blip2Processor puts the image in front of the whole prompt. The class wants "
        "an image in every prompt.",
    )

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from last_state(model, ("blip_2_vision_model",))
        if isinstance(vision := model.vision, HFVision) and not vision.keep_cls:
            yield "vision.keep_cls=false, expected true"
        if isinstance(views := model.views, SingleView) and views.newline is not None:
            yield "views.newline=true, expected false"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> Blip2Config:
        resampler = cast(QFormer, model.resampler)
        layers = resampler.encoder.layers
        crossed = [number for number, layer in enumerate(layers) if layer.cross_attn is not None]
        return Blip2Config(
            vision_config=encoder_config(model).to_dict(),
            qformer_config={
                "hidden_size": resampler.queries.shape[1],
                "num_hidden_layers": len(layers),
                "num_attention_heads": layers[0].self_attn.num_heads,
                "intermediate_size": layers[0].mlp.fc1.out_features,
                "cross_attention_frequency": crossed[1] if len(crossed) > 1 else len(layers),
                "encoder_hidden_size": encoder(model).spec().dim,
            },
            text_config=llm_config(model, vocabulary.size),
            num_query_tokens=len(resampler.queries),
            image_token_index=vocabulary.image,
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        resampler = cast(QFormer, model.resampler)
        return {
            **encoder_state(model, "vision_model."),
            "query_tokens": resampler.queries.detach()[None],
            **{"qformer." + name: one for name, one in renamed(below(resampler.encoder), LAYER).items()},
            **below(resampler.proj, "language_projection."),
            **below(cast(HFLlm, model.llm).model, "language_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        return {} if shown is None else stacked(shown)

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaProcessor:
        return counted(one_view(model), tokenizer, template, model.specs["llm"].n)
