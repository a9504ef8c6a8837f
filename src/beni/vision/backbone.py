"""Bare vision models of transformers: built from a config, given pixels in the form that each wants."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from beni.errors import ConfigError
from beni.nn.architecture import buildable

MOONVIT = "kimi_k25_vision"

INSIDE = {
    "blip_2_vision_model": "transformers.models.blip_2.modeling_blip_2.Blip2VisionModel",
    "idefics2_vision": "transformers.models.idefics2.modeling_idefics2.Idefics2VisionTransformer",
    "instructblip_vision_model": "transformers.models.instructblip.modeling_instructblip.InstructBlipVisionModel",
    MOONVIT: "transformers.models.kimi_k25.modeling_kimi_k25.Kimi_K25VisionModel",
}
"""Encoders that transformers has inside a vision-language model only, and does not list as models of their own."""


def _register(config: PreTrainedConfig) -> None:
    """Lists an encoder of ``INSIDE`` as a model of its own."""
    path = INSIDE.get(config.model_type)
    if path is not None and type(config) not in MODEL_MAPPING:
        module, _, name = path.rpartition(".")
        AutoModel.register(type(config), getattr(importlib.import_module(module), name), exist_ok=True)


def own_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """(height, width) in pixels that the model was trained at, where its config says."""
    size = config.to_dict().get("image_size")
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def model_inputs(model: PreTrainedModel, pixels: Float[Tensor, "i 3 height width"]) -> dict[str, Any]:
    """Pixels as a model wants them: told to interpolate positions, where it asks and the size is not its own; or cut
    into patches, for the models of native resolution that take these.
    """
    asked, (height, width) = inspect.signature(model.forward).parameters, pixels.shape[2:]
    if "spatial_shapes" in asked:
        patches = patches_of(model, pixels)
        shapes = torch.tensor([patches.shape[1:3]] * len(pixels), device="cpu")  # read, also in a dry run
        return {
            "pixel_values": patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2),  # (i, n, patch * patch * 3)
            "pixel_attention_mask": None,
            "spatial_shapes": shapes,
        }
    if model.config.model_type == MOONVIT:
        return moonvit_inputs(model, patches_of(model, pixels))
    interpolates = "interpolate_pos_encoding" in asked and (height, width) != own_size(model.config)
    return {"pixel_values": pixels} | ({"interpolate_pos_encoding": True} if interpolates else {})


def patches_of(
    model: PreTrainedModel, pixels: Float[Tensor, "i 3 height width"]
) -> Float[Tensor, "i rows columns 3 patch patch"]:
    """The patches of pictures; what is left over below and on the right is cut off."""
    patch = model.config.to_dict()["patch_size"]
    rows, columns = (side // patch for side in pixels.shape[2:])
    cut = pixels[:, :, : rows * patch, : columns * patch]
    return cut.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)


def moonvit_inputs(model: PreTrainedModel, patches: Float[Tensor, "i rows columns 3 patch patch"]) -> dict[str, Any]:
    """Patches of pictures end to end, with what MoonViT works out from their grids by reading values.

    Worked out here it needs no values on the device, so it can be done in a dry run. The pooled features, which nobody
    reads, are those of one patch.
    """
    images, rows, columns = patches.shape[:3]
    grids = torch.tensor([[1, rows, columns]] * images, device="cpu")
    indices, weights = get_vision_interpolation_indices_and_weights(
        grids, model.config.to_dict()["pos_emb_height"], mode="bicubic"
    )
    flash = "flash" in (model.config._attn_implementation or "")  # others split by values that they read
    return {
        "pixel_values": patches.flatten(0, 2),
        "grid_thw": grids,
        "interp_indices": indices.to(patches.device),
        "interp_weights": weights.to(patches.device),
        "frame_index": torch.zeros(len(indices), dtype=torch.long, device=patches.device),
        "position_ids": get_vision_position_ids(grids, 1).to(patches.device),
        "cu_seqlens": get_vision_cu_seqlens(grids).to(patches.device if flash else "cpu"),
        "max_seqlen": rows * columns,
        "temporal_merge_index": torch.zeros(1, 1, 1, dtype=torch.long, device=patches.device),
    }


def pooling(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that leaves out a pooling head, which nobody reads, for models that have the choice."""
    known = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that is the bare model of ``config``.

    Raises:
        ConfigError: when there is none.
    """
    if "vision_config" in config.sub_configs:
        own = config.to_dict()["vision_config"] or {}  # some have none of their own accord
        raise ConfigError(
            f"vision.architecture.model_type={config.model_type} is a whole vision-language model, no encoder\n"
            f"  fix: set vision.architecture.model_type={own.get('model_type', 'clip_vision_model')}"
        )
    _register(config)
    if type(config) not in MODEL_MAPPING:
        raise ConfigError(
            f"vision.architecture.model_type={config.model_type}: transformers has no model of it that stands alone\n"
            "  fix: set vision.architecture.model_type=clip_vision_model"
        )
    return cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])


def build_encoder(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """The bare model of ``config`` on torch's current default device, in its default dtype.

    Raises:
        ConfigError: when transformers has no bare model of that type, or it cannot be built from these fields.
    """
    encoder_class(config)
    with buildable("vision", config.model_type, attn_implementation):
        return AutoModel.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.get_default_dtype(), **pooling(config)
        )


def repeated_blocks(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.ModuleList,)) -> list[nn.Module]:
    """The longest list of modules in ``model`` and, where it repeats in every stage, its likes of the other stages."""
    lists = {name: list(module.children()) for name, module in model.named_modules() if isinstance(module, kinds)}
    longest = max(lists, key=lambda name: len(lists[name]), default="")
    alike = [module for name, module in lists.items() if _in_any_stage(name) == _in_any_stage(longest)]
    return [block for module in alike for block in module]


def _in_any_stage(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
