"""Small decoders of many families, as ``llm.architecture`` has them."""

from __future__ import annotations

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
TEXT |= {"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 256, "num_hidden_layers": 2}
LLMS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "phi3": GROUPED,
    "gpt2": GPT2 | {"bos_token_id": 0, "eos_token_id": 1},
    "gpt_neox": TEXT,
    "opt": TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "olmo2": GROUPED,
    "smollm3": GROUPED,
    "granite": GROUPED,
    "gemma": GROUPED,
    "phi": TEXT,
    "stablelm": GROUPED,
    "cohere": GROUPED,
    "falcon": TEXT | {"new_decoder_architecture": False, "multi_query": True},
    "mixtral": GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": GPT2 | {"rotary_dim": 4, "n_inner": 64, "bos_token_id": 0, "eos_token_id": 1},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "state_size": 4, "pad_token_id": 2},
}
EAGER = ("gemma2", "gptj", "bloom", "mamba")
"""Families without torch's attention, or with soft-capping, which it does not have."""
