"""The ``train`` section: what is trained, on how much, from what, and what becomes of a step that would spoil it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.components import BACKBONES, COMPONENTS, Component
from beni.config.ranges import AtLeast, Below, Example

PlanMode = Literal["auto", "frozen", "full", "lora"]


@dataclass(frozen=True)
class Guard:
    """What becomes of a step that would spoil the run (training/guard.py): ``halt`` ends the run, ``skip`` leaves the
    step's update out, ``rewind`` goes back to the newest checkpoint and leaves it out when the run comes by again.

    Attributes:
        nonfinite: for a loss or gradient that is not finite.
        spike: for a loss far above the median of those before it; ``accept`` does not look.
        threshold: how far: so many deviations, by the median deviation (at least 1 % of the median).
        window: losses that are looked back at.
        most: steps that may be left out; with one more the run ends.
    """

    nonfinite: Literal["halt", "skip", "rewind"]
    spike: Literal["accept", "halt", "skip", "rewind"]
    threshold: Annotated[float, AtLeast(1)]
    window: Annotated[int, AtLeast(8)]
    most: Annotated[int, AtLeast(0)]


@dataclass(frozen=True)
class Train:
    """What is trained, and for how long (training/loop.py).

    Attributes:
        _target_: called with ``training.loop.TrainerSettings``; its ``fit`` takes the steps.
        steps: optimizer steps.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        accumulation: micro-batches into which each rank divides its share of a step.
        seed: of every named random stream.
        init_from: run folder or ``save_pretrained`` folder whose weights this run starts from, or a study, of which the
            run with this run's seed is meant; else null.
        ema: decay of an average of the weights that train, in (0, 1), which is then scored and exported; 0 keeps none.
        plan: component -> ``frozen``, ``full`` or ``lora`` (training/trainable.py). ``auto``, and a component that is
            not named: a vision encoder or llm with pretrained weights is frozen, all else trains in full.
        thaw: component -> share of the steps for which it stays frozen though it trains (training/thaw.py).
        guard: against steps that would spoil the run.
    """

    _target_: str
    steps: Annotated[int, AtLeast(1)]
    batch_size: Annotated[int, AtLeast(1)]
    accumulation: Annotated[int, AtLeast(1)]
    seed: Annotated[int, AtLeast(0)]
    init_from: str | None
    ema: Annotated[float, AtLeast(0), Below(1), Example("0.999, or 0 for none")]
    plan: dict[Component, PlanMode]
    thaw: dict[Component, Annotated[float, AtLeast(0), Below(1), Example("0.1")]]
    guard: Guard


def resolved_plan(run: Mapping[str, Any]) -> dict[str, str]:
    """Every component's mode, with ``auto`` decided."""
    given = run["train"]["plan"]
    decided = {name: "frozen" if name in BACKBONES and _has_pretrained(run[name]) else "full" for name in COMPONENTS}
    return decided | {name: mode for name, mode in given.items() if mode != "auto"}


def _has_pretrained(node: Mapping[str, Any]) -> bool:
    return node["weights"] == "pretrained" if "weights" in node else node.get("name") is not None


def train_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    train = run["train"]
    if train["accumulation"] > train["batch_size"]:
        yield (
            f"train.accumulation={train['accumulation']} micro-batches, but only "
            f"train.batch_size={train['batch_size']} samples\n"
            f"  fix: set train.accumulation={train['batch_size']} or less"
        )
    for component, share in train["thaw"].items():
        key = f"train.thaw.{component}={share}"
        if share and train["plan"][component] == "frozen":
            yield (
                f"{key}, but train.plan.{component}=frozen\n"
                f"  fix: set train.plan.{component}=full or train.thaw.{component}=0"
            )
        elif share and math.ceil(share * train["steps"]) >= train["steps"]:
            yield (
                f"{key} leaves {component} no trainable step of train.steps={train['steps']}\n"
                f"  fix: set train.thaw.{component} lower, or train.plan.{component}=frozen"
            )
