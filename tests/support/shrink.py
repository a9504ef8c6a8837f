"""How the architecture of a vision encoder is made small: the same code runs, in a fraction of a second."""

from __future__ import annotations

from typing import Any

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
}
"""Fields that most architectures have."""

STAGES = {
    "swin": {"embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 2, "patch_size": 2},
    "convnext": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "depthwise_padding": []},
}
"""Architectures in stages: their own fields, of which a part cannot be changed alone."""

SIDE = {"swin": 32, "convnext": 96, "resnet": 160, "mobilenet_v2": 160, "efficientnet": 160}
"""Pixels a side at which these have a grid of 3x3 or more."""


SMALLEST = {
    "timm/vit_pe_lang_large_patch14_448.fb": {"name": "vit_pe_core_tiny_patch16_384.fb", "image_size": 64},
    "timm/fastvit_mci3.apple_mclip2_dfndr2b": {"name": "fastvit_mci0.apple_mclip", "image_size": 256},
    "timm/mobilenetv5_300m.gemma3n": {"image_size": 256},
    "beni.vision.cnn.EfficientNetLite0": {"image_size": 224},
}
"""Models of timm, or classes, -> the smallest of their kind, and pixels a side at which its tokens' places differ."""


def shrink(architecture: dict[str, Any], image_size: int) -> tuple[dict[str, Any], int]:
    """A declared architecture and the size it is used at -> both small; where positions are interpolated, still so."""
    kind = architecture["model_type"]
    if kind in STAGES:
        sized = {"image_size": SIDE[kind]} if "image_size" in architecture else {}
        return architecture | STAGES[kind] | sized, SIDE[kind]
    fields = architecture | {k: v for k, v in SMALL.items() if k in architecture}
    side = 3 * fields["patch_size"]
    if "image_size" not in fields:  # native resolution: positions for so many patches, or for any
        return fields | ({"num_patches": 9} if "num_patches" in fields else {}), side
    return fields | {"image_size": side if fields["image_size"] == image_size else 4 * fields["patch_size"]}, side


def shrink_vision(values: dict[str, Any]) -> dict[str, Any]:
    """A whole node of the group, its encoders included where it has several; weights random."""
    small = values | ({"weights": "random"} if "weights" in values else {})
    if "encoders" in values:
        small["encoders"] = {name: shrink_vision(node) for name, node in values["encoders"].items()}
        if values["grid"] != "auto":
            small["grid"] = [4, 4] if isinstance(values["grid"], list) else {key: [4, 4] for key in values["grid"]}
    elif values.get("architecture"):
        small["architecture"], small["image_size"] = shrink(values["architecture"], values["image_size"])
    elif "image_size" in values:
        small |= SMALLEST.get(values.get("name") or values["_target_"], {"image_size": 64})
    return small


STAGE = {
    "hidden_size": 32,
    "hidden": 48,
    "intermediate_size": 64,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "num_latents": 6,
    "num_queries": 6,
    "max_queries": 9,
    "max_prompt": 256,
    "side": 3,
    "crops": 3,
    "regions": 3,
    "bins": 2,
    "whole": 2,
    "vocabulary": 40,
    "channels": [24, 20],
}
"""Values of a stage, where its YAML has a number, or a list, for them."""

FUSION = {"every": 1, "first": 0, "expansion": 2.0, "sets": 1}
"""Layers of a fusion's own around those of the smallest llm."""

DETECTOR = {
    "architecture": {
        "model_type": "detr",
        "num_labels": 5,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "out_features": ["stage2"],
        },
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 12,
    },
    "name": None,
    "weights": "random",
    "image_size": 64,
    "threshold": 0.0,
    "regions": 2,
}
"""A detector of a moment, untrained: all of its scores are low."""

VIEWS = {
    "ps3": {"times": 2, "detail": 4, "width": 8},
    "random_patches": {"times": 2},
    "idefics2": {"shortest": 8, "longest": 24},
    "native": {"max_patches": 24, "multiple": 2},
    "dragonfly_v2": {"pool": 2},
    "idefics3": {"longest": 2},
    "internvl": {"max_tiles": 3},
    "regions_detector": DETECTOR,
    "regions_grid": {"regions": 2},
    "regions_random": {"regions": 2},
    "regions_saliency": {"regions": 2},
    "anyres": {"canvases": [[1, 2], [2, 1]]},
    "deepstack": {"canvases": [[1, 2], [2, 1]]},
}
"""Views of a picture of a few patches a side."""


PRUNER = {"layer": 2, "layers": [1, 2, 3], "keep": 0.5}
"""Layers of an llm of four, and a share of few tokens."""


LLM = {"hidden_size": 48, "num_key_value_heads": 2, "vocab_size": 640, "max_position_embeddings": 2048}
"""In a model: wider than the encoder, with room for the embedded tokenizer and a few pictures."""


def shrink_llm(values: dict[str, Any]) -> dict[str, Any]:
    """A node of the group, random, that reads and writes with the embedded tokenizer."""
    fields = values["architecture"]
    small = {k: v for k, v in {**SMALL, **LLM}.items() if k in fields}
    return values | {"architecture": fields | small, "weights": "random", "tokenizer": "embedded"}


def shrink_pruner(values: dict[str, Any]) -> dict[str, Any]:
    """A node of the group for an llm of four layers."""
    return values | {k: v for k, v in PRUNER.items() if type(values.get(k)) is type(v)}


def shrink_stage(group: str, option: str, values: dict[str, Any]) -> dict[str, Any]:
    """A node of views, selector, resampler, connector or fusion, of a width and depth that cost nothing."""
    if group == "views":
        return values | VIEWS.get(option, {})
    small = STAGE | FUSION if group == "fusion" else STAGE
    sets = {"sets": 2} if option == "deepstack_views" else {}
    return values | {k: v for k, v in small.items() if isinstance(values.get(k), type(v))} | sets
