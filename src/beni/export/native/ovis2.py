"""Ovis 2 (arXiv 2405.20797): AIMv2, and a visual vocabulary whose words are weighed for each block of patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlavaProcessor, Ovis2Config, Ovis2ForConditionalGeneration, PreTrainedTokenizerBase

from beni.connector.identity import IdentityConnector
from beni.export.native.base import Expected, Family, Shown, Vocabulary, last_state, unlike
from beni.export.native.llava import stacked
from beni.export.native.processors import counted, one_view
from beni.export.native.tensors import encoder_config, encoder_state, llm_config, llm_state, renamed
from beni.model.modeling import BeniForConditionalGeneration
from beni.resampler.ovis import Ovis
from beni.selector.none import NoSelector
from beni.views.single import SingleView

PARTS = {
    "views": Expected(SingleView, "single"),
    "selector": Expected(NoSelector, "none"),
    "resampler": Expected(Ovis, "ovis"),
    "connector": Expected(IdentityConnector, "auto"),
}
ENCODER = ((".embeddings.patch_embed.", ".embeddings.patch_embedding."),)
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
FIELDS += ("num_channels", "rms_norm_eps", "attention_dropout", "qkv_bias", "mlp_bias", "hidden_act")
TOKENIZE = {"softmax": "softmax", "argmax": "st_argmax", "gumbel": "st_argmax"}
"""What a token is, here and there, where nothing is drawn."""
MARKS = 5
"""Visual words for marks around an image, which beni's model does not have; their vectors are zeros, never read."""


class Ovis2(Family):
    """``Ovis2ForConditionalGeneration``."""

    architecture = Ovis2ForConditionalGeneration
    notes = ("The processor is LlavaProcessor: Ovis2Processor writes marks around an image and cuts it into tiles.",)

    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        yield from unlike(model, PARTS)
        yield from last_state(model, ("aimv2_vision_model",))
        if isinstance(views := model.views, SingleView) and views.newline is not None:
            yield "views.newline=true, expected false"
        grid = model.specs["vision"].grid
        r = resampler.r if isinstance(resampler := model.resampler, Ovis) else 1
        if grid is None or grid[0] != grid[1] or grid[0] % r:
            yield f"the encoder's grid is {grid}, expected a square whose sides resampler.r={r} divides"

    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> Ovis2Config:
        vision, text = encoder_config(model).to_dict(), llm_config(model, vocabulary.size)
        resampler = cast(Ovis, model.resampler)
        return Ovis2Config(
            vision_config={
                **{name: vision[name] for name in FIELDS},
                "hidden_stride": resampler.r,
                "vocab_size": len(resampler.words) + MARKS,
                "num_visual_indicator_tokens": MARKS,
                "tokenize_function": TOKENIZE[resampler.tokenize],
            },
            text_config=text,
            image_token_id=vocabulary.image,
            visual_indicator_token_ids=[],
            vocab_size=vocabulary.size,
            hidden_size=model.llm.hidden_size,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )

    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        resampler = cast(Ovis, model.resampler)
        words = resampler.words.detach()
        return {
            **renamed(encoder_state(model, "model.vision_tower.transformer."), ENCODER),
            "model.vision_tower.head_linear.weight": resampler.head.weight.detach(),
            "model.vision_tower.head_norm.weight": resampler.norm.weight.detach(),
            "model.vision_tower.head_norm.bias": resampler.norm.bias.detach(),
            "model.visual_embeddings_table.weight": torch.cat([words, words.new_zeros(MARKS, words.shape[1])]),
            **llm_state(model, "model.language_model."),
        }

    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        return {} if shown is None else stacked(shown)

    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> LlavaProcessor:
        return counted(one_view(model), tokenizer, template, model.specs["llm"].n)
