"""The sections of the composed run that hold plain values, as torch-free dataclasses, and the rules between them.

Part groups (vision, resampler, ...) are not here: their schema is the signature of their ``_target_``
(``config/signature.py``). Each section's docstring names who reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from beni.config.sections.adapters import adapter_rules
from beni.config.sections.compute import Compute, compute_rules
from beni.config.sections.fsdp import Fsdp, fsdp_rules
from beni.config.sections.inputs import Images, Records, Schedule, Template, schedule_rules
from beni.config.sections.launcher import LAUNCHERS, Launcher, launcher_rules
from beni.config.sections.log import Log, log_rules
from beni.config.sections.optim import OPTIMIZERS, Optim, optim_rules
from beni.config.sections.results import Checkpoint, Eval, Model, Paths, checkpoint_rules, eval_rules, folder_rules
from beni.config.sections.study import Study, study_rules
from beni.config.sections.train import Train, train_rules

SECTIONS: dict[str, type[Any]] = {
    "model": Model,
    "train": Train,
    "compute": Compute,
    "log": Log,
    "optim": Optim,
    "template": Template,
    "schedule": Schedule,
    "fsdp": Fsdp,
    "checkpoint": Checkpoint,
    "images": Images,
    "records": Records,
    "eval": Eval,
    "paths": Paths,
    "study": Study,
    "launcher": Launcher,
}

VARIANTS: dict[str, tuple[str, Mapping[str, type[Any]]]] = {
    "optim": ("optimizer", OPTIMIZERS),
    "launcher": ("backend", LAUNCHERS),
}
"""Sections whose keys depend on one of their values: its name, and the class of each value."""

RULES: tuple[Callable[[Mapping[str, Any]], Iterator[str]], ...] = (
    train_rules,
    compute_rules,
    log_rules,
    schedule_rules,
    optim_rules,
    checkpoint_rules,
    eval_rules,
    fsdp_rules,
    adapter_rules,
    folder_rules,
    study_rules,
    launcher_rules,
)
"""Rules between values of a run whose values all fit their types."""
