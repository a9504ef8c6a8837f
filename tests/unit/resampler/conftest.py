"""A resampler as its YAML describes it, some keys changed."""

from __future__ import annotations

import pytest
import torch
import yaml

from beni.config.build import build_stage
from beni.nn.streams import torch_stream
from beni.paths import conf_dir


@pytest.fixture
def resampler():
    """resampler("qformer", tokens, dim_out, depth=2): drawn and in evaluation mode, on ``device`` (or meta)."""

    def make(option, tokens, dim_out, device="cpu", **keys):
        node = yaml.safe_load((conf_dir() / "resampler" / f"{option}.yaml").read_text())
        assert set(keys) <= set(node)
        with torch.device(device), torch_stream(0, option):
            stage = build_stage(node | keys, tokens=tokens, dim_out=dim_out)
            stage.init_weights()
        return stage.eval()

    return make


@pytest.fixture
def parameters():
    """How many a module has."""
    return lambda module: sum(p.numel() for p in module.parameters())
