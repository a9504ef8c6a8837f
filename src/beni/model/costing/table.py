"""The spec table: what each stage does to the visual tokens and what it costs, known before any weight exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from beni.components import COMPONENTS
from beni.model.build import build_model
from beni.model.costing.counts import Costs
from beni.model.costing.tokens import patches_of
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan, count_parameters, require_weights_of
from beni.model.viewer import placeholders
from beni.nn.architecture import require_fields
from beni.types import ImageLayout, TokenSpec


@dataclass(frozen=True)
class SpecRow:
    """One stage of one run.

    Attributes:
        tokens: visual tokens of one image after the stage, over all its views; for the llm, positions of a mean sample.
        fixed: whether every picture has all ``tokens``; else they are the most that there can be.
        mean: tokens that are to be expected, where that is known and not all are there.
        grid: of each view, where there is one and the same.
        width: of the tokens after the stage.
        parameters: of the stage.
        trained: of these, how many train.
        flops: forward, for one sample with one image.
    """

    stage: str
    option: str
    tokens: int
    fixed: bool
    mean: float | None
    width: int
    grid: tuple[int, int] | None
    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True)
class SpecTable:
    """The rows and what follows from them.

    Attributes:
        visual_tokens: of one image that the llm is given: as many as are to be expected, or the most where that is not
            known.
        prefill_flops: forward FLOPs of one sample.
        train_flops_per_sample: forward and backward, as counted (``costing/counts.py``). With nested numbers of visual
            tokens: the sum over those that each sample is seen at, or the mean over those that are drawn.
    """

    rows: tuple[SpecRow, ...]
    visual_tokens: int
    prefill_flops: int
    train_flops_per_sample: int

    def row(self, stage: str) -> SpecRow:
        """The row of one stage."""
        return next(row for row in self.rows if row.stage == stage)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def propagate(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """Builds the run's model on the meta device, so that an impossible combination fails before any weight is loaded.

    Raises:
        CompositionError: with a code and a fix.
        ConfigError: an ``architecture`` has fields that its model does not know.
        TrainabilityError: nothing trains, or something is said of the training of a part without weights.
    """
    require_fields(run)
    with torch.device("meta"):
        model = build_model(run, image_token_id=-1, pretrained=False)
    apply_plan(model, run["train"]["plan"])
    require_weights_of(model, run)
    return model


def spec_table(
    model: BeniForConditionalGeneration, run: Mapping[str, Any], length: int, label_rows: int, image: ImageLayout
) -> SpecTable:
    """What each stage of a run does and costs.

    Args:
        model: on the meta device, its plan applied.
        image: layout of the image that tokens and FLOPs are given for.
        length: positions of a mean sample, visual ones included.
        label_rows: supervised positions of a mean sample.
    """
    counts, specs = count_parameters(model), model.row_specs(image)
    laid_out = model.viewer.visual_tokens(image)
    dropped = _dropped(specs["connector"])
    costs = Costs(model)
    flops = costs.prefill(image, length, label_rows, dropped)
    rows = []
    for stage in COMPONENTS:
        made = specs.get(stage, specs["connector"])
        tokens = {"llm": length, "fusion": laid_out}.get(stage, sum(row.n for row in made))
        if stage == "vision":  # of some views it sees only what is chosen
            sees = zip(made, model.views.sees(image), strict=True)
            tokens -= sum(patches_of(model.vision, view) - kept for view, kept in sees if kept is not None)
        fixed, mean = all(row.fixed for row in made), _mean(made)
        rows.append(
            SpecRow(
                stage=stage,
                option=run["choices"].get(stage, "custom"),
                tokens=tokens,
                fixed=fixed,
                mean=None if fixed or mean is None else tokens - sum(row.n for row in made) + mean,
                width=made[0].dim,
                grid=made[0].grid if stage in specs and len(set(made)) == 1 else None,
                parameters=sum(counts[stage].values()),
                trained=counts[stage]["trained"],
                flops=flops[stage],
            )
        )
    passes = []
    for scale in range(1, model.nested.drawn + 1) if model.nested else (image.scale,):
        seen = replace(image, scale=scale)
        longer = length + placeholders(model.viewer.markup(seen)) - placeholders(model.viewer.markup(image))
        passes.append(sum(costs.training(seen, longer, label_rows, dropped).values()))
    return SpecTable(
        rows=tuple(rows),
        visual_tokens=laid_out - dropped,
        prefill_flops=sum(row.flops for row in rows),
        train_flops_per_sample=sum(passes) if model.nested and model.nested.every else sum(passes) // len(passes),
    )


def _dropped(rows: Sequence[TokenSpec]) -> int:
    """Tokens of an image that are laid out and then taken out before the llm, as far as their number is known."""
    mean = _mean(rows)
    return 0 if mean is None else round(sum(row.n for row in rows) - mean)


def _mean(rows: Sequence[TokenSpec]) -> float | None:
    """Tokens of an image that are to be expected over its rows; None where that is not known of one of them."""
    means = [float(row.n) if row.fixed else row.mean for row in rows]
    return None if None in means else sum(mean for mean in means if mean is not None)
