"""What a run would be billed for: the amounts that the arms of a study can be given alike (``study.match``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from beni.errors import ConfigError
from beni.model.costing.table import spec_table
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan
from beni.types import ImageLayout


@dataclass(frozen=True)
class Bill:
    """A run's costs for any number of steps.

    Attributes:
        samples: of an optimizer step; of packs, the mean.
        positions: of a mean sample that the llm is given; None where it sees a sample at several numbers of visual
            tokens.
        trained: parameters that train.
        prefill_flops: forward FLOPs of a sample.
        phases: share of the steps at which a phase of ``train.thaw`` begins, and training FLOPs of a sample from then
            on; the first begins at 0.
    """

    samples: float
    positions: int | None
    trained: int
    prefill_flops: int
    phases: tuple[tuple[float, int], ...]

    def amount(self, match: str, steps: int) -> float:
        """How much of what ``study.match`` names so many steps take.

        Raises:
            ConfigError: for the tokens of a run that sees each sample at several numbers of them.
        """
        if match == "tokens":
            if self.positions is None:
                raise ConfigError(
                    "study.match=tokens, but an arm is trained at several numbers of visual tokens\n"
                    "  fix: set study.match=train_flops or study.match=steps"
                )
            return self.positions * self.samples * steps
        if match == "train_flops":
            return self.train_flops(steps)
        return {"prefill_flops": self.prefill_flops, "params": self.trained, "steps": steps}[match]

    def train_flops(self, steps: int) -> float:
        """Forward and backward FLOPs of all steps."""
        begins = [*(math.ceil(share * steps) for share, _ in self.phases), steps]
        taken = (end - begin for begin, end in pairwise(begins))
        return self.samples * sum(count * flops for count, (_, flops) in zip(taken, self.phases, strict=True))


def bill_of(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    length: int,
    label_rows: int,
    image: ImageLayout,
    samples: float,
) -> Bill:
    """The bill of a run, from the spec table of each phase.

    Args:
        model: on the meta device, its plan applied.
        length: positions of a mean sample, visual ones included.
        label_rows: supervised positions of a mean sample.
        image: layout of the image of a sample.
        samples: of an optimizer step.

    Raises:
        TrainabilityError: when nothing trains in a phase.
    """
    train, tables = run["train"], {}
    for begin in sorted({0.0, *train["thaw"].values()}):
        waiting = [name for name, share in train["thaw"].items() if share > begin]
        apply_plan(model, train["plan"] | dict.fromkeys(waiting, "frozen"))
        tables[begin] = spec_table(model, run, length, label_rows, image)
    table = tables[max(tables)]  # where all of the plan trains
    left_out = table.row("fusion").tokens - table.visual_tokens
    return Bill(
        samples=samples,
        positions=None if model.nested else length - left_out,
        trained=sum(row.trained for row in table.rows),
        prefill_flops=table.prefill_flops,
        phases=tuple((begin, one.train_flops_per_sample) for begin, one in tables.items()),
    )
