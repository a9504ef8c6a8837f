"""Encoder and projector as the second file of GGUF that llama.cpp wants (``mmproj``): LLaVA and Idefics3.

llama.cpp computes GELU by its tanh form, also where transformers computes it exactly (LLaVA's projector).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from beni.errors import CompositionError
from beni.export.gguf.content import Content

ENCODER = (
    ("embeddings.class_embedding", "v.class_embd"),
    ("embeddings.patch_embedding.", "v.patch_embd."),
    ("embeddings.position_embedding.", "v.position_embd."),
    ("pre_layrnorm.", "v.pre_ln."),
    ("post_layernorm.", "v.post_ln."),
    ("encoder.layers.", "v.blk."),
    (".layer_norm1.", ".ln1."),
    (".layer_norm2.", ".ln2."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.out_proj.", ".attn_out."),
    (".mlp.fc1.", ".ffn_up."),
    (".mlp.fc2.", ".ffn_down."),
)
"""Names of CLIP's and SigLIP's tensors in transformers and in llama.cpp."""
GELU = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True, "gelu_new": True}
"""Activation -> whether llama.cpp is told of it; it takes the quick one for granted."""
ENCODERS = ("clip_vision_model", "siglip_vision_model", "idefics3_vision")


def llava(config: Any, state: Mapping[str, Tensor], normalisation: Mapping[str, Any]) -> Content:
    """``LlavaForConditionalGeneration``: all blocks of its encoder, no norm behind them, two layers.

    Raises:
        CompositionError: E-GGUF when llama.cpp would compute something else.
    """
    content = encoder(config.vision_config, state, "model.vision_tower.", normalisation)
    for name in [name for name in content.tensors if name.startswith("v.post_ln.")]:
        del content.tensors[name]  # llama.cpp norms where there are weights to norm with; LLaVA reads before it
    projector = "model.multi_modal_projector."
    if projector + "linear_1.bias" not in state:
        raise refusal("its projector has no biases, which llama.cpp adds (connector.bias=true)")
    for ours, theirs in (("linear_1", "mm.0"), ("linear_2", "mm.2")):
        content.take({f"{theirs}.{kind}": state[f"{projector}{ours}.{kind}"] for kind in ("weight", "bias")})
    # without the number llama.cpp leaves the last block out
    content.fields |= {
        "clip.projector_type": "mlp",
        "clip.vision.feature_layer": [config.vision_config.num_hidden_layers],
        "clip.vision.projection_dim": config.text_config.hidden_size,
    }
    return content


def idefics3(config: Any, state: Mapping[str, Tensor], normalisation: Mapping[str, Any]) -> Content:
    """``Idefics3ForConditionalGeneration``: its encoder to the last norm, one matrix on blocks of patches.

    Raises:
        CompositionError: E-GGUF when llama.cpp would compute something else.
    """
    content = encoder(config.vision_config, state, "model.vision_model.", normalisation)
    content.take({"mm.model.fc.weight": state["model.connector.modality_projection.proj.weight"]})
    if config.scale_factor < 2:
        raise refusal(f"resampler.r={config.scale_factor}, and llama.cpp wants 2 or more")
    content.fields |= {
        "clip.projector_type": "idefics3",
        "clip.vision.projector.scale_factor": config.scale_factor,
        "clip.vision.preproc_image_size": normalisation["longest"],
        "clip.vision.projection_dim": config.text_config.hidden_size,
    }
    return content


def encoder(
    config: PreTrainedConfig, state: Mapping[str, Tensor], prefix: str, normalisation: Mapping[str, Any]
) -> Content:
    """The encoder of a class.

    Args:
        prefix: of its tensors.
        normalisation: ``image_mean`` and ``image_std``.

    Raises:
        CompositionError: E-GGUF when it is none that llama.cpp has.
    """
    values = config.to_dict()
    act = values["hidden_act"]
    if config.model_type not in ENCODERS:
        raise refusal(f"an encoder of type {config.model_type}, expected {', '.join(ENCODERS)}")
    if act not in GELU:
        raise refusal(f"the encoder's activation is {act}, expected {', '.join(GELU)}")
    content = Content("clip")
    content.fields |= {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.vision.image_size": values["image_size"],
        "clip.vision.patch_size": values["patch_size"],
        "clip.vision.embedding_length": values["hidden_size"],
        "clip.vision.feed_forward_length": values["intermediate_size"],
        "clip.vision.block_count": values["num_hidden_layers"],
        "clip.vision.attention.head_count": values["num_attention_heads"],
        "clip.vision.attention.layer_norm_epsilon": float(values["layer_norm_eps"]),
        "clip.vision.image_mean": list(normalisation["image_mean"]),
        "clip.vision.image_std": list(normalisation["image_std"]),
        "clip.use_gelu": GELU[act],
    }
    for name, tensor in state.items():
        if name.startswith(prefix):
            content.take({_named(name.removeprefix(prefix)): tensor})
    return content


def _named(name: str) -> str:
    for ours, theirs in ENCODER:
        name = name.replace(ours, theirs)
    return name


def refusal(why: str) -> CompositionError:
    """The error of a model that llama.cpp would compute otherwise."""
    return CompositionError(
        "E-GGUF", f"this run cannot be written for llama.cpp: {why}", groups=("vision",), fix="set --format native"
    )
