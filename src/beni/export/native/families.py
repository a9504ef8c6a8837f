"""The classes of transformers that a run can be written as, and which of them one is."""

from __future__ import annotations

from importlib import import_module
from inspect import isclass

from beni.errors import CompositionError
from beni.export.native.base import Family
from beni.model.modeling import BeniForConditionalGeneration

FAMILIES = ("llava", "llava_next", "idefics2", "idefics3", "internvl", "paligemma", "gemma3", "blip2", "ovis2")
"""Files of this package with a family each, in the order in which they are asked."""

CLOSEST = 3
"""Classes that a refusal speaks of."""


def family(name: str) -> Family:
    """The family of a file."""
    module = import_module(f"beni.export.native.{name}")
    found = [one for one in vars(module).values() if isclass(one) and issubclass(one, Family) and one is not Family]
    (own,) = (one for one in found if one.__module__ == module.__name__)
    return own()


def family_of(model: BeniForConditionalGeneration) -> Family:
    """The family that a composition is.

    Raises:
        CompositionError: E-NATIVE when it is none; names in what it differs from the closest, and what works.
    """
    apart: list[tuple[Family, list[str]]] = []
    for name in FAMILIES:
        one = family(name)
        found = list(one.differences(model))
        if not found:
            return one
        apart.append((one, found))
    closest = sorted(apart, key=lambda pair: len(pair[1]))[:CLOSEST]
    lines = "".join(f"\n  {one.architecture.__name__}: {'; '.join(found)}" for one, found in closest)
    raise CompositionError(
        "E-NATIVE",
        f"no class of transformers is this composition. The closest of {len(FAMILIES)} differ in:{lines}",
        fix="set --format pretrained (transformers with beni), merged (a run with adapters) or torch_export",
    )
