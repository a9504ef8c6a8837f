"""Small vision models of every family, and HFVision with the keys that a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 4]}

KEYS: dict[str, Any] = {
    "name": None,
    "weights": "random",
    "architecture": None,
    "image_size": 32,
    "layer": -1,
    "levels": [],
    "keep_cls": False,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "resize": "squash",
    "attn_implementation": "eager",
}


@pytest.fixture
def encoder() -> Callable[..., Any]:
    """encoder("clip_vision_model", field=..., key=...): HFVision in evaluation mode, small as its family is."""
    from beni.vision.hf import HFVision

    def make(family: str | None = None, fields: dict[str, Any] | None = None, **keys: Any) -> Any:
        values = KEYS | keys
        if family is not None:
            values["architecture"] = {"model_type": family, **(VIT if fields is None else fields)}
        torch.manual_seed(0)
        return HFVision(**values).eval()

    return make


@pytest.fixture
def scramble() -> Callable[[nn.Module], nn.Module]:
    """Large weights on all tensors, norms included: a norm applied or left out then shows."""

    def change(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model.eval()

    return change
