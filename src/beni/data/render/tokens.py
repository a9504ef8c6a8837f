"""Special tokens, resolved explicitly: many llms lack one of them, and none has beni's image placeholder.

The placeholder is added to the tokenizer only. Its id may lie beyond the llm's embedding table: placeholder positions
are filled with visual tokens and never looked up or predicted, so no embedding is resized and tied heads stay tied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from beni.errors import DataError

IMAGE = "<image>"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that data and generation need, stated in the run's identity.

    Attributes:
        image: the placeholder that visual tokens replace.
        bos: first token of a sequence, None for llms without one.
        pad: filler; masks come from lengths, so it may equal ``eos``.
        eos: ids that end an answer: the tokenizer's eos and the template's end-of-turn token.
    """

    image: int
    bos: int | None
    pad: int
    eos: tuple[int, ...]


def resolve_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Adds the image placeholder to ``tokenizer`` when it has none, and reads the others.

    Raises:
        DataError: when the tokenizer has no eos token, or is not a fast one (label spans need offsets).
    """
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer {type(tokenizer).__name__} gives no offsets; beni needs a fast tokenizer")
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no eos token, so generation would never stop; set llm.tokenizer to one that has, "
            "or add eos_token to its tokenizer_config.json"
        )
    if IMAGE not in added_tokens(tokenizer):  # an ordinary vocabulary entry would be written in pieces
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    eos = cast(int, tokenizer.eos_token_id)
    return SpecialTokens(
        image=cast(int, tokenizer.convert_tokens_to_ids(IMAGE)),
        bos=leading_bos(tokenizer),
        pad=eos if tokenizer.pad_token_id is None else cast(int, tokenizer.pad_token_id),
        eos=(eos,),
    )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that are always one token; many a chat template ends turns with one that no attribute names."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The bos id that the tokenizer itself puts in front of a text, else None."""
    ids = tokenizer("a").input_ids
    return int(ids[0]) if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else None
