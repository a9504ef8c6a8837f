"""Finds every option of a group by listing conf/, and makes each small enough to run on any machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from beni.paths import conf_dir
from support.shrink import shrink_vision

DIM = 32
SMALL = {
    "hidden_size": DIM,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
"""What a declared architecture is shrunk to, in the fields it has."""


OPTIONAL = {"beni.vision.timm.TimmVision": ("timm", "torchvision")}
"""Classes that need packages which are no dependency of beni, not even of its tests."""

STAGES = ("views", "selector", "resampler", "connector")


def options(group: str) -> list[str]:
    """Names of the option files of a group."""
    found = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    assert found
    return found


def node(group: str, option: str) -> dict[str, Any]:
    """An option's values, its architecture shrunk, its weights random."""
    values = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
    if group == "vision":
        return shrink_vision(values)
    if "weights" in values:
        values["weights"] = "random"
    if values.get("architecture"):
        values["architecture"] |= {k: v for k, v in SMALL.items() if k in values["architecture"]}
    return values


def needed(group: str, option: str) -> list[pytest.MarkDecorator]:
    """Skips an option whose package beni does not install."""
    target = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text()).get("_target_")
    missing = [name for name in OPTIONAL.get(target, ()) if find_spec(name) is None]
    return [pytest.mark.skip(reason=f"needs {', '.join(missing)}")] if missing else []
