"""Any option of the visual path inside the smallest model that takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beni.errors import CompositionError
from beni.model.costing.table import propagate
from support.options import node
from support.shrink import shrink_llm, shrink_pruner, shrink_stage

LEVELS = "with levels"
GRIDS = (
    ("vision.image_size=24", "vision.architecture.patch_size=6"),
    ("vision.image_size=32", "vision.architecture.patch_size=4"),
    ("vision.image_size=24", "vision.architecture.patch_size=4"),
    ("vision.image_size=24", "vision.architecture.patch_size=6", LEVELS),
    ("vision.image_size=24", "vision.architecture.patch_size=6", "llm.architecture.hidden_size=32"),
)
"""4x4 tokens, 8x8, 6x6, 4x4 with three more layers; the last for what needs equal widths."""

LONG = ("llm.architecture.max_position_embeddings=2048", "template.max_length=2048")


def small_run(tiny_run: Callable[..., dict[str, Any]], group: str, option: str) -> dict[str, Any]:
    """A run with the option, on the first of the grids that it accepts; the llm is wider than the encoder."""
    refusals = []
    for grid in GRIDS:
        deep = ("llm.architecture.num_hidden_layers=4",) if group == "pruner" or "deepstack" in option else ()
        deep = ("llm.architecture.num_hidden_layers=3",) if (group, option) == ("fusion", "sva") else deep
        words = (word for word in grid if word != LEVELS)
        run = tiny_run(*LONG, "llm.architecture.hidden_size=48", *deep, *words)
        run["vision"]["levels"] = [0, 1, 2] if LEVELS in grid else []
        run[group] = smaller(group, option)
        run["choices"][group] = option
        run |= together(group, option)
        try:
            propagate(run)
        except CompositionError as error:
            refusals.append(str(error))
        else:
            return run
    raise AssertionError("\n".join(refusals))


def together(group: str, option: str) -> dict[str, Any]:
    """Nodes of other groups that an option must stand beside, or else is refused."""
    if (group, option) == ("fusion", "hybrid"):
        return {"views": smaller("views", "internvl") | {"min_tiles": 2}}
    if (group, option) == ("fusion", "deepstack_views"):
        return {"views": smaller("views", "deepstack")}
    if (group, option) == ("fusion", "sva"):
        return {"resampler": smaller("resampler", "sva") | {"side": "auto"}}
    if (group, option) == ("views", "deepstack"):
        return {"fusion": smaller("fusion", "deepstack_views")}
    return {}


def smaller(group: str, option: str) -> dict[str, Any]:
    """An option's values, of a size that costs nothing."""
    values = node(group, option)
    if group == "vision":
        return values
    if group == "pruner":
        return shrink_pruner(values)
    return shrink_llm(values) if group == "llm" else shrink_stage(group, option, values)
