"""Weights of a run under the names that classes of transformers have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from beni.errors import CompositionError
from beni.llm.hf import HFLlm
from beni.model.modeling import BeniForConditionalGeneration
from beni.vision.hf import HFVision

POSITIONS = "embeddings.position_embedding.weight"
"""Learned positions of CLIP, SigLIP and their likes: one vector for CLS where there is one, then one a patch."""


def below(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The state of a module, each name behind ``prefix``."""
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def renamed(state: Mapping[str, Tensor], pairs: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The state with parts of its names replaced in order; a later pair sees what an earlier one made."""
    out = {}
    for name, tensor in state.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def encoder(model: BeniForConditionalGeneration) -> HFVision:
    """The encoder of a composition that has one of transformers."""
    return cast(HFVision, model.vision)


def encoder_config(model: BeniForConditionalGeneration, **fields: Any) -> PreTrainedConfig:
    """The configuration of the encoder as it was built, at the size that the run gives it.

    Args:
        fields: of the configuration, to be set.
    """
    vision = encoder(model)
    config = deepcopy(vision.model.config)
    if sized_anew(model):
        fields["image_size"] = vision.transform.shape[0]
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def sized_anew(model: BeniForConditionalGeneration) -> bool:
    """Whether the encoder is given squares of another size than its positions were made for."""
    vision = encoder(model)
    own = vision.model.config.to_dict().get("image_size")
    height, width = vision.transform.shape
    return isinstance(own, int) and height == width != own


def encoder_state(model: BeniForConditionalGeneration, prefix: str) -> dict[str, Tensor]:
    """The weights of the encoder. Positions that it interpolates at the size of the run are written as they are there,
    since the classes of transformers do not ask for interpolation.

    Raises:
        CompositionError: E-RES when the encoder interpolates positions of another kind.
    """
    vision = encoder(model)
    state = dict(vision.model.state_dict())
    if sized_anew(model):
        state[POSITIONS] = interpolated(vision.model, vision.transform.shape)
    return {prefix + name: tensor for name, tensor in state.items()}


@torch.no_grad()
def interpolated(model: PreTrainedModel, size: tuple[int, int]) -> Tensor:
    """The positions of an encoder at views of (height, width) pixels, ``(n, d)``.

    Raises:
        CompositionError: E-RES when it has none that can be asked for.
    """
    embeddings = getattr(model, "embeddings", None)
    interpolate = getattr(embeddings, "interpolate_pos_encoding", None)
    if interpolate is None or POSITIONS not in model.state_dict():
        raise CompositionError(
            "E-RES",
            f"{model.config.model_type} at {size[0]}x{size[1]} pixels, another size than its own: its positions "
            "cannot be written at that size",
            groups=("vision",),
            fix=f"set vision.image_size={model.config.to_dict().get('image_size')}, or --format pretrained",
        )
    patch = model.config.to_dict()["patch_size"]
    count = (size[0] // patch) * (size[1] // patch)
    table = model.state_dict()[POSITIONS]
    sides = model.config.to_dict()["image_size"] // patch
    count += len(table) - sides * sides  # CLS
    found = interpolate(table.new_zeros(1, count, table.shape[1]), *size)
    return found[0].clone()


def llm_config(model: BeniForConditionalGeneration, vocabulary_size: int) -> PreTrainedConfig:
    """The configuration of the llm with so many ids."""
    config = deepcopy(cast(HFLlm, model.llm).model.config)
    config.vocab_size = vocabulary_size
    return config


def llm_state(model: BeniForConditionalGeneration, decoder: str, head: str = "lm_head.") -> dict[str, Tensor]:
    """The weights of the llm, its decoder below one name and its head below another.

    Raises:
        CompositionError: E-NATIVE when it has more than a decoder and one matrix for its head.
    """
    causal = cast(HFLlm, model.llm).model
    inner, out = causal.base_model_prefix + ".", {}
    for name, tensor in causal.state_dict().items():
        if name.startswith(inner):
            out[decoder + name.removeprefix(inner)] = tensor
        elif name == "lm_head.weight":
            out[head + "weight"] = tensor
        else:
            raise CompositionError(
                "E-NATIVE",
                f"{causal.config.model_type} has {name} beside its decoder, which the class has no place for",
                groups=("llm",),
                fix="set --format pretrained",
            )
    return out


def with_rows(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The state with as many rows in the tables of ids as the class has; those that are added are zeros."""
    out = {}
    for name, tensor in state.items():
        more = expected.get(name, tensor.shape)
        if len(more) == tensor.ndim and more[1:] == tensor.shape[1:] and more[0] > tensor.shape[0]:
            tensor = torch.cat([tensor, tensor.new_zeros(more[0] - tensor.shape[0], *more[1:])])
        out[name] = tensor
    return out
