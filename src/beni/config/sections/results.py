"""What a run leaves behind and where: ``checkpoint``, ``eval``, ``paths``, ``model``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import AtLeast


@dataclass(frozen=True)
class Checkpoint:
    """Saving and resuming (training/checkpoint/saver.py).

    Attributes:
        every: steps between checkpoints; 0 saves none but the last.
        keep: newest checkpoints kept.
        keep_best: metric of the evaluation, for instance ``eval/accuracy``; the checkpoint of the best one is kept too.
        on_error: when a checkpoint cannot be written: ``continue`` (say so, train on) or ``halt``.
        resume: ``auto`` (the newest complete one of this run folder), ``changed_data`` (it too, also where the data are
            others than it began with) or ``never`` (start over; the old folder is kept).
        export: write a ``save_pretrained`` folder at the end.
    """

    every: Annotated[int, AtLeast(0)]
    keep: Annotated[int, AtLeast(1)]
    keep_best: str | None
    on_error: Literal["continue", "halt"]
    resume: Literal["auto", "changed_data", "never"]
    export: bool


@dataclass(frozen=True)
class Eval:
    """Held-out evaluation (evals/).

    Attributes:
        every: steps between evaluations during training; 0 evaluates only at the end.
        examples: held-out examples scored; 0 takes all, ``auto`` all but no more than the run trains on.
        batch_size: examples of one forward pass.
        gallery: held-out pictures shown in the report with the model's answers.
        attention: last layers of the llm, of those that attend, of which the gallery shows what the answers look at; 0
            shows none.
        ablations: what the last evaluation scores beside the true and the blank pictures, which all do: pictures that
            are ``shuffled`` (4x4 tiles change places), ``swapped`` (that of another sample), ``noise`` (random pixels),
            and half of the visual tokens ``dropped``.
    """

    every: Annotated[int, AtLeast(0)]
    examples: Annotated[int, AtLeast(0)] | Literal["auto"]
    batch_size: Annotated[int, AtLeast(1)]
    gallery: Annotated[int, AtLeast(0)]
    attention: Annotated[int, AtLeast(0)]
    ablations: list[Literal["shuffled", "swapped", "noise", "dropped"]]


@dataclass(frozen=True)
class Paths:
    """Where things go (runs/identity.py).

    Attributes:
        runs: root of the run folders.
    """

    runs: str


@dataclass(frozen=True)
class Model:
    """Who assembles the parts.

    Attributes:
        _target_: called with the resolved run; returns a ``BeniForConditionalGeneration``.
    """

    _target_: str


def checkpoint_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    best = run["checkpoint"]["keep_best"]
    if best is not None and not best.startswith("eval/"):
        yield (
            f"checkpoint.keep_best={best}, expected a metric of the evaluation\n"
            "  fix: set checkpoint.keep_best=eval/accuracy, eval/loss or null"
        )
    elif best is not None and not run["eval"]["every"]:
        yield (
            f"checkpoint.keep_best={best} compares evaluations, but eval.every=0 makes only the last\n"
            "  fix: set eval.every, or checkpoint.keep_best=null"
        )


def eval_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules about ablations, as problems with their fixes."""
    named = run["eval"]["ablations"]
    if len(once := list(dict.fromkeys(named))) < len(named):
        yield (
            f"eval.ablations=[{','.join(named)}] names one of them twice, expected each once\n"
            f"  fix: set 'eval.ablations=[{','.join(once)}]'"
        )


def folder_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules about names of folders, as problems with their fixes."""
    if not run["paths"]["runs"].strip():
        yield "paths.runs is empty, expected a folder\n  fix: set paths.runs=runs"
