"""Processors of transformers that give the ids and pixels that a run was trained with.

The processor of a class often writes a prompt of its own around an image, or wants tokens that the llm of a run does
not have. ``LlavaProcessor`` writes nothing but the placeholders, so it is what a class gets whose images are so many
placeholders and nothing else; AutoProcessor reads from the folder which processor it is.
"""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)
from transformers.image_processing_backends import PilBackend

from beni.data.render.tokens import IMAGE, added_tokens
from beni.errors import CompositionError
from beni.export.native.tensors import encoder
from beni.model.modeling import BeniForConditionalGeneration


def normalisation(model: BeniForConditionalGeneration) -> dict[str, Any]:
    """The arguments of an image processor that normalise pixels as the encoder wants them."""
    transform = encoder(model).transform
    return {"image_mean": list(transform.mean), "image_std": list(transform.std)}


def sized(model: BeniForConditionalGeneration) -> dict[str, int]:
    """The size of the encoder's pixels, as image processors take it."""
    height, width = encoder(model).transform.shape
    return {"height": height, "width": width}


def one_view(model: BeniForConditionalGeneration) -> PilBackend:
    """The image processor that makes one view of an image, squashed, padded or cropped as in the run."""
    shape, values = sized(model), normalisation(model)
    resize = encoder(model).transform.resize
    if resize == "squash":
        return SiglipImageProcessorPil(size=shape, **values)
    if resize == "crop":
        return CLIPImageProcessorPil(size={"shortest_edge": min(shape.values())}, crop_size=shape, **values)
    return LlavaImageProcessorPil(do_pad=True, size=shape, do_center_crop=False, **values)


def counted(
    image_processor: PilBackend, tokenizer: PreTrainedTokenizerBase, template: str, tokens: int
) -> LlavaProcessor:
    """The processor that writes so many placeholders for an image of any size, and nothing else."""
    side = 1 << 20  # no image has a patch of so many pixels, so only the tokens beside patches count
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=side,
        num_additional_image_tokens=tokens,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def require_token(tokenizer: PreTrainedTokenizerBase, token: str, who: str) -> None:
    """Return when a text that processors write around an image is one token of the tokenizer.

    Raises:
        CompositionError: E-NATIVE when the llm spells it: the processor would make it one token that was not trained.
    """
    if token not in added_tokens(tokenizer):
        raise CompositionError(
            "E-NATIVE",
            f"the tokenizer has no token {token}, which the run spells in pieces, and {who} takes it for one",
            groups=("llm", "views"),
            fix=f"train with an llm.tokenizer that has {token}, or set --format pretrained",
        )


def named_tokens(tokenizer: PreTrainedTokenizerBase, **named: str) -> PreTrainedTokenizerBase:
    """The tokenizer, which knows these tokens by the names under which processors ask for them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        names = {"image_token": IMAGE, **named}
        return AutoTokenizer.from_pretrained(folder, model_specific_special_tokens=names)


def typed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, which gives ``token_type_ids`` as well: 0 everywhere, a prompt."""
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer
