"""What a run would be, for a sample and processes that are assumed: its spec table, its memory, its views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beni.data.order.schedule import require_division
from beni.errors import ConfigError
from beni.measure.memory import Memory
from beni.model.costing.memory import estimate_memory
from beni.model.costing.table import SpecTable, propagate, spec_table
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.viewer import placeholders


@dataclass(frozen=True)
class Assumed:
    """The sample and the processes that a plan is made for.

    Attributes:
        size: (height, width) of an image in pixels.
        text: tokens of text, ``labels`` of them supervised.
        world: processes, ``local`` of them on each machine.
    """

    size: tuple[int, int]
    text: int
    labels: int
    world: int
    local: int


@dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        length: positions of the sample.
        views: of its image.
        loading: FLOPs that the loader takes to find the views of an image.
    """

    table: SpecTable
    need: Memory
    length: int
    views: int
    loading: int

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        need = self.need
        memory = {"memory_bytes": need.peak, "loading_bytes": need.loading, "offloaded_bytes": need.offloaded}
        return self.table.to_dict() | memory | {"views": self.views, "loading_flops": self.loading}


def plan_of(run: dict[str, Any], assumed: Assumed, model: BeniForConditionalGeneration | None = None) -> Plan:
    """The plan of a frozen run.

    Args:
        model: that ``propagate`` has made of the run, where the caller has it.

    Raises:
        BeniError: when the run cannot be.
    """
    train = run["train"]
    require_division(train["batch_size"], assumed.world, train["accumulation"], run["schedule"]["cycle"])
    model = propagate(run) if model is None else model
    image = model.views.plan(assumed.size)
    length = assumed.text + placeholders(model.viewer.markup(image))
    if (limit := model.llm.max_positions) is not None and length > limit:
        raise ConfigError(
            f"--text={assumed.text} makes a sample of {length} positions with its visual tokens, the llm has {limit}\n"
            "  fix: set a smaller --text, or use fewer visual tokens"
        )
    table = spec_table(model, run, length, assumed.labels, image)
    need = estimate_memory(model, run, assumed.world, length, assumed.labels, assumed.local)
    return Plan(table, need, length, len(image.views), model.views.loading_flops())
