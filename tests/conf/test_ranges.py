"""Every number of a part has a range, or stands here with the reason why it has none."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import yaml

from beni.components import PART_GROUPS
from beni.config.signature import keys_of
from beni.paths import conf_dir

WITHOUT = {
    "vision.layer": "counts from the end; E-LEVELS says which there are",
    "vision.levels": "counts from either end; E-LEVELS says which there are",
    "vision.mean": "any finite number",
    "views.mean": "any finite number",
    "resampler.cross_attention_every": "E-PLACE",
    "selector.threshold": "any finite number",
}
GROUPS = [group for group in PART_GROUPS if group != "data"]


def bare(node: ast.expr) -> Iterator[str]:
    """The numbers of an annotation that stand in no ``Annotated``; those of ``Literal`` are their own range."""
    match node:
        case ast.Subscript(value=ast.Name(id="Annotated" | "Literal")):
            return
        case ast.Name(id="int" | "float" as kind):
            yield kind
        case _:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    yield from bare(child)


@pytest.mark.parametrize("group", GROUPS)
def test_every_number_of_a_part_has_a_range(group: str) -> None:
    targets = {
        yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"] for path in (conf_dir() / group).glob("*.yaml")
    }
    found = {
        f"{group}.{key.name}"
        for target in targets
        for key in keys_of(target).values()
        if list(bare(ast.parse(key.annotation, mode="eval").body))
    }
    assert found == {key for key in WITHOUT if key.startswith(f"{group}.")}
