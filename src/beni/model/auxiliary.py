"""Auxiliary losses of the stages: sums that the step divides by the count over all its micro-batches and ranks.

A mean over a micro-batch would weigh each micro-batch alike, and the sum over micro-batches and ranks would multiply it
by their number. So a stage leaves a sum, and declares what it runs over (``Stage.auxiliary``): how many those are in a
step follows from the layouts of its images, before the first backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from beni.stage import Sink, Stage
from beni.types import TokenSpec


def counts(stages: Mapping[str, Stage], specs: Iterable[Mapping[str, list[TokenSpec]]]) -> dict[str, int]:
    """``<stage>/<name>`` -> what the auxiliary losses are summed over for some images.

    Args:
        stages: name -> stage, in the order of the data's way, views first.
        specs: for each image what its rows are behind each stage.
    """
    found: dict[str, int] = {}
    images = list(specs) if any(stage.auxiliary for stage in stages.values()) else []
    for before, name in pairwise(stages):
        for loss, unit in stages[name].auxiliary.items():
            rows = [row for image in images for row in image[before]]
            found[f"{name}/{loss}"] = sum(row.n for row in rows) if unit == "tokens" else len(rows)
    return found


def means(sink: Sink | None, declared: Mapping[str, int], of_step: Mapping[str, int]) -> dict[str, Float[Tensor, ""]]:
    """The auxiliary losses that the stages have left, each divided by its count of the step.

    Args:
        declared: the counts of this micro-batch; nothing is checked where it has no layouts, and so no counts.
        of_step: those of the whole step; this micro-batch's own stand in.

    Raises:
        RuntimeError: when a stage counts otherwise than it declares, since the step has gone by that.
    """
    losses = {} if sink is None else sink.losses
    for name, (_, count) in losses.items():
        if name not in declared or declared[name] not in (0, count):
            raise RuntimeError(
                f"the auxiliary loss {name} is a sum over {count}; its stage declares "
                f"{declared.get(name, 'no such loss')} (Stage.auxiliary)"
            )
    return {name: total / (of_step.get(name) or count) for name, (total, count) in losses.items()}
