"""An llm of transformers as a file of GGUF that llama.cpp reads: Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from beni.errors import CompositionError
from beni.export.gguf.content import Content, library

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` -> llama.cpp's architecture."""


def llm_content(config: PreTrainedConfig, state: Mapping[str, Tensor]) -> Content:
    """The llm without its tokenizer.

    Args:
        config: of its decoder.
        state: its weights as ``model.*`` and ``lm_head.*``.

    Raises:
        CompositionError: E-GGUF when llama.cpp would compute something else.
    """
    require_known(config)
    gguf = library()
    architecture, values = ARCHITECTURES[config.model_type], config.to_dict()
    heads, width = values["num_attention_heads"], values["hidden_size"]
    kv_heads = values.get("num_key_value_heads") or heads
    head = values.get("head_dim") or width // heads
    fields = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": width,
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(values["rms_norm_eps"]),
        "rope.dimension_count": head,
        "rope.freq_base": float(values["rope_parameters"]["rope_theta"]),
        "vocab_size": values["vocab_size"],
    }
    content = Content(architecture, {f"{architecture}.{key}": value for key, value in fields.items()})
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, values["num_hidden_layers"])
    for name, tensor in state.items():
        if name == "lm_head.weight" and values["tie_word_embeddings"]:
            continue  # llama.cpp takes the embeddings then
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise _refusal(config, f"it has no place for {name}")
        if architecture == "llama" and ".self_attn.q_proj." in name:
            tensor = interleaved(tensor, heads)
        if architecture == "llama" and ".self_attn.k_proj." in name:
            tensor = interleaved(tensor, kv_heads)
        content.take({there: tensor})
    return content


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """``(heads * d, ...) -> (heads * d, ...)``: llama.cpp rotates neighbouring channels of a Llama's head, transformers
    those of its two halves.
    """
    half = tensor.shape[0] // heads // 2
    return tensor.unflatten(0, (heads, 2, half)).transpose(1, 2).flatten(0, 2)


def require_known(config: PreTrainedConfig) -> None:
    """Return when llama.cpp computes what transformers does.

    Raises:
        CompositionError: E-GGUF when it does not, or nobody has looked.
    """
    values: dict[str, Any] = config.to_dict()
    if config.model_type not in ARCHITECTURES:
        raise _refusal(config, f"beni writes {', '.join(ARCHITECTURES)}")
    if (kind := values["rope_parameters"].get("rope_type", "default")) != "default":
        raise _refusal(config, f"its positions are of type {kind}, expected default")
    if values.get("hidden_act") != "silu":
        raise _refusal(config, f"its activation is {values.get('hidden_act')}, expected silu")
    window = values.get("sliding_window")
    if window and values.get("use_sliding_window", True) and window < values["max_position_embeddings"]:
        raise _refusal(config, f"its layers look back {window} positions only")


def _refusal(config: PreTrainedConfig, why: str) -> CompositionError:
    return CompositionError(
        "E-GGUF",
        f"an llm of type {config.model_type} cannot be written for llama.cpp: {why}",
        groups=("llm",),
        fix="set --format native, and convert that with llama.cpp's convert_hf_to_gguf.py",
    )
