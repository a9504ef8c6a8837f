"""A tokenizer as fields of GGUF. llama.cpp knows how texts are cut before merging by name, so only tokenizers are
written whose cutting has one: byte-level BPE cut as GPT-2, SmolLM, Llama 3 or Qwen2 do, and BPE with bytes to fall back
on and spaces as ``▁`` (Llama 2, TinyLlama, Vicuna).
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from beni.data.render.tokens import SpecialTokens
from beni.errors import CompositionError

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Kinds of tokens, as llama.cpp numbers them."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {WORDS + r"\p{N}" + REST: "qwen2", WORDS + r"\p{N}{1,3}" + REST: "llama-bpe"}
"""The pattern that a tokenizer cuts texts with -> llama.cpp's name for it."""


def vocabulary_fields(
    tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens, size: int, template: str
) -> dict[str, Any]:
    """Key -> value for a tokenizer.

    Args:
        tokens: the run's special tokens.
        size: ids of the llm.
        template: chat template.

    Raises:
        CompositionError: E-GGUF when llama.cpp has no name for how it cuts texts.
    """
    description = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    texts, kinds = _tokens(tokenizer, description, size)
    model = description["model"]
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    if model["type"] == "BPE" and model.get("byte_fallback"):
        fields |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(texts, merges)}
        fields["tokenizer.ggml.add_space_prefix"] = _prefixes(description)
    else:
        fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": cut_of(description)}
        fields["tokenizer.ggml.merges"] = merges
    fields |= {
        "tokenizer.ggml.eos_token_id": tokens.eos[0],
        "tokenizer.ggml.padding_token_id": tokens.pad,
        "tokenizer.ggml.add_bos_token": tokens.bos is not None,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": template,
    }
    if len(tokens.eos) > 1:
        fields["tokenizer.ggml.eot_token_id"] = tokens.eos[1]
    if tokenizer.bos_token_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = cast(int, tokenizer.bos_token_id)
    return fields


def cut_of(description: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts texts before it merges.

    Args:
        description: of the tokenizer, as tokenizer.json has it.

    Raises:
        CompositionError: E-GGUF when it has none.
    """
    cut: dict[str, Any] = description["pre_tokenizer"] or {"type": "none"}
    steps: list[dict[str, Any]] = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    normalizer = (description["normalizer"] or {"type": "none"})["type"]
    if description["model"]["type"] == "BPE" and steps[-1]["type"] == "ByteLevel" and normalizer in ("none", "NFC"):
        byte_level, before = steps[-1], steps[:-1]
        plain = byte_level["use_regex"] and not byte_level["add_prefix_space"]
        if plain and not before:
            return "gpt-2"
        if plain and before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
        if len(before) == 1 and before[0]["type"] == "Split" and not byte_level["use_regex"]:
            name = SPLITS.get(before[0]["pattern"].get("Regex", ""))
            if name is not None:
                return name
    raise CompositionError(
        "E-GGUF",
        f"llama.cpp has no name that beni knows for how this tokenizer cuts texts ({json.dumps(steps)[:160]})",
        groups=("llm",),
        fix="set --format native, and convert that with llama.cpp's convert_hf_to_gguf.py",
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, description: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every id."""
    added = {token["id"]: token for token in description["added_tokens"]}
    known = {number: text for text, number in tokenizer.get_vocab().items()}
    texts, kinds = [], []
    for number in range(size):
        text = known.get(number, f"[PAD{number}]")
        texts.append(text)
        if number not in known:
            kinds.append(UNUSED)
        elif number in added:
            kinds.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            kinds.append(BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else NORMAL)
    return texts, kinds


def _scores(texts: list[str], merges: list[str]) -> list[float]:
    """What llama.cpp merges by: the earlier a piece is merged, the higher; pieces that no merge makes come last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(text, len(merges))) for text in texts]


def _prefixes(description: dict[str, Any]) -> bool:
    """Whether a space is put in front of a text."""
    normalizer: dict[str, Any] = description["normalizer"] or {"type": "none"}
    steps: list[dict[str, Any]] = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    pre = description["pre_tokenizer"] or {}
    return any(step["type"] == "Prepend" for step in steps) or pre.get("prepend_scheme") in ("first", "always")
