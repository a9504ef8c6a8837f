"""Finds every option of a group by listing conf/, and makes each small enough to run on any machine."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from beni.nn.streams import torch_stream
from beni.paths import conf_dir

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


STAGES = ("views", "selector", "resampler", "connector")


def options(group: str) -> list[str]:
    """Names of the option files of a group."""
    found = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    assert found
    return found


def node(group: str, option: str) -> dict[str, Any]:
    """An option's values, its architecture shrunk, its weights random."""
    values = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
    if "weights" in values:
        values["weights"] = "random"
    if values.get("architecture"):
        fields = values["architecture"] | {k: v for k, v in SMALL.items() if k in values["architecture"]}
        if "patch_size" in fields:  # 3x3 patches; an encoder that interpolates its positions goes on doing so
            same = fields["image_size"] == values["image_size"]
            values["image_size"] = 3 * fields["patch_size"]
            fields["image_size"] = values["image_size"] if same else 4 * fields["patch_size"]
        values["architecture"] = fields
    elif "image_size" in values:
        values["image_size"] = 64
    return values


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``option`` in a test's arguments runs it for every option of its module's ``GROUPS``."""
    if "option" in metafunc.fixturenames:
        cases = [(group, name) for group in metafunc.module.GROUPS for name in options(group)]
        metafunc.parametrize("option", cases, ids=[f"{group}={name}" for group, name in cases])


@pytest.fixture
def make(absent):
    """make(option, *args, seed=0): the part, its weights drawn from a stream of its own, in evaluation mode.

    A stage takes its incoming spec and, where it asks for it, the llm's width.
    """
    from beni.config.build import build, build_stage
    from beni.errors import WeightsError

    def build_part(option, *args, seed=0):
        with torch_stream(seed, *option):
            try:
                if option[0] in STAGES:
                    part = build_stage(node(*option), tokens=args[0], dim_out=DIM)
                else:
                    part = build(node(*option), *args)
            except WeightsError as error:
                absent(str(error))
            if hasattr(part, "init_weights"):
                part.init_weights()
        return part.eval()

    return build_part
