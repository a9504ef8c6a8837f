"""Small decoders of several families, with weights so large that attention is far from uniform."""

from __future__ import annotations

import torch

from beni.llm.hf import HFLlm

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
KV = {"num_key_value_heads": 2}
FAMILIES = {
    "llama": SMALL | KV,
    "qwen3": SMALL | KV | {"head_dim": 8},
    "mistral": SMALL | KV | {"sliding_window": 4},
    "gemma2": SMALL
    | KV
    | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 64},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 64},
    "mixtral": SMALL | KV | {"num_local_experts": 4},
}
NO_DOUBLES = ("mixtral",)  # torch has no grouped products of them


def make(family, seed=0):
    torch.manual_seed(seed)
    llm = HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": family, **FAMILIES[family]},
        attn_implementation="eager" if family == "gemma2" else "sdpa",  # gemma2 has no sdpa in transformers
        tokenizer="embedded",
    )
    with torch.no_grad():  # so that a leak cannot hide
        for parameter in llm.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return llm
