"""What the training loop is told of a run, in one typed value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beni.config.sections.log import steps_between_lines
from beni.model.inputs import Loss


@dataclass(frozen=True)
class TrainerSettings:
    """How a run's steps are taken.

    Attributes:
        steps: of the whole run.
        seed: of the run's named streams.
        precision: ``bf16`` or ``fp32``.
        loss: how head and loss are computed (model/loss.py).
        plan: component -> ``frozen``, ``full`` or ``lora``.
        thaw: component -> share of the steps for which it stays frozen at first.
        guard: what becomes of a step that would spoil the run (training/guard.py).
        ema: decay of the average of the weights; 0 keeps none.
        max_bad: share of all pictures that may be bad before the run ends.
        max_bad_records: the same of all records.
        optim: the ``optim`` section (config/sections/optim.py).
        checkpoint: the ``checkpoint`` section.
        eval_every: steps between evaluations; 0 evaluates after the last only.
        log_every: steps between log lines.
        workers: loader processes.
    """

    steps: int
    seed: int
    precision: str
    loss: Loss
    plan: Mapping[str, str]
    thaw: Mapping[str, float]
    guard: Mapping[str, Any]
    ema: float
    max_bad: float
    max_bad_records: float
    optim: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    eval_every: int
    log_every: int
    workers: int

    @classmethod
    def of(cls, run: Mapping[str, Any], loss: Loss) -> TrainerSettings:
        """The settings of a frozen run; ``loss`` is what ``compute.loss`` came to for its llm."""
        train, compute = run["train"], run["compute"]
        return cls(
            **{name: train[name] for name in ("steps", "seed", "plan", "thaw", "guard", "ema")},
            precision=compute["precision"],
            loss=loss,
            max_bad=run["images"]["max_bad"],
            max_bad_records=run["records"]["max_bad"],
            optim=run["optim"],
            checkpoint=run["checkpoint"],
            eval_every=run["eval"]["every"],
            log_every=steps_between_lines(run),
            workers=compute["workers"],
        )
