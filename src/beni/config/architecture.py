"""The ``architecture`` of an encoder, llm or detector: fields of a Hugging Face config, judged as far as that goes.

Which fields a model knows is judged while planning (nn/architecture.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from beni.components import DESCRIBED
from beni.config.given import own
from beni.config.types import fits

SIZE = re.compile(
    r"(hidden_size|num_(hidden_layers|attention_heads)|vocab_size|patch_size|image_size|head_dim|depths)$"
)
"""Fields that no model can have below 1."""
LAYERS, WIDTH = 1000, 1_000_000
"""Limits far above every published model: beyond them a model on the meta device takes for ever to build."""


def settle_architectures(run: dict[str, Any], given: Mapping[str, Any], hydra: DictConfig) -> list[str]:
    """An ``architecture`` that is given another ``model_type`` than its option has keeps nothing of the option's
    fields; they would mean something else in another model, or nothing.

    Returns:
        Problems: fields and names that are given and nobody would read.
    """
    problems = []
    for group in DESCRIBED:
        for path, node, said, option in described(group, run[group], given.get(group), own(hydra, group)):
            problems += _settle(path, node, said, option)
    return problems


def described(
    path: str, node: Any, said: Any = None, option: Any = None
) -> Iterator[tuple[str, dict[str, Any], Any, Any]]:
    """Nodes with an ``architecture``, those within ``vision.encoders`` too, and the same place in two other trees."""
    if not isinstance(node, dict):
        return
    said, option = (tree if isinstance(tree, Mapping) else {} for tree in (said, option))
    if "architecture" in node:
        yield path, node, said, option
    for key, value in node.items():
        if key != "architecture":
            yield from described(f"{path}.{key}", value, said.get(key), option.get(key))


def _settle(path: str, node: dict[str, Any], said: Mapping[str, Any], option: Mapping[str, Any]) -> Iterator[str]:
    fields, set_here, before = node["architecture"], said.get("architecture"), option.get("architecture")
    pretrained = node.get("weights") == "pretrained"
    if isinstance(fields, dict) and isinstance(set_here, Mapping) and isinstance(before, Mapping):
        if fields.get("model_type") != before.get("model_type"):
            node["architecture"] = fields = {key: value for key, value in fields.items() if key in set_here}
        changed = [key for key in set_here if key in fields and fields[key] != before.get(key, ...)]
        if path == "llm" and pretrained and changed:
            yield (
                f"llm.architecture.{changed[0]}={fields[changed[0]]}, but llm.weights=pretrained brings the fields of "
                f"{node.get('name')}\n  fix: set llm.weights=random, or leave out llm.architecture.{changed[0]}"
            )
    if pretrained and "name" in node and node["name"] is None:
        yield (
            f"{path}.weights=pretrained, and {path}.name=null says of no weights where they are\n"
            f"  fix: set {path}.weights=random, or {path}.name to a hub id or a folder"
        )
    name = said.get("name")
    if name is not None and not pretrained and node["architecture"] is not None:
        yield (
            f"{path}.name={name} is not read: {path}.weights=random, and {path}.architecture says what is built\n"
            f"  fix: set {path}.weights=pretrained, or {path}.architecture=null to build that of {name}"
        )


def architecture_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Problems of values that every model would take and none could mean: no layers, a dropout of 1.5, NaN."""
    for group in DESCRIBED:
        for path, node, *_ in described(group, run[group]):
            fields = node["architecture"] if isinstance(node["architecture"], dict) else {}
            for key, value in fields.items():
                if (wrong := _wrong(key, value)) is not None:
                    field = f"{path}.architecture.{key}"
                    shown = "null" if value is None else value
                    yield f"{field}={shown}, expected {wrong[0]}\n  fix: set {field}={wrong[1]}"


def _wrong(key: str, value: Any) -> tuple[str, str] | None:
    """What was expected of a field and a value that would do; None where nothing is wrong with it."""
    if key == "model_type" and not isinstance(value, str):
        return "the name of a type of model", "llama"
    values = value if isinstance(value, list) else [value]
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if not all(fits(one, "float") for one in numbers):
        return "a number", "0.1"
    if re.search(r"(dropout|drop_path_rate|drop_rate|_pdrop)$", key) and not all(0 <= one < 1 for one in numbers):
        return "a number of at least 0 and below 1", "0.1"
    if SIZE.search(key):
        most = LAYERS if key == "num_hidden_layers" else WIDTH
        if not all(1 <= one <= most for one in numbers):
            return f"whole numbers between 1 and {most}", "1 or more"
    return None
