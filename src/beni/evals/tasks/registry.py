"""The tasks of ``python -m beni.evaluate``, all of them: the class of each is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from beni.config.types import example, expectation, fits
from beni.errors import ConfigError

if TYPE_CHECKING:
    from beni.evals.tasks.base import Task


class Entry(NamedTuple):
    """Where a task is, and what it scores."""

    module: str
    name: str
    what: str


TASKS = {
    "run": Entry("run", "RunScore", "as the run's own evaluations: the metric of its data, by teacher forcing"),
    "exact": Entry("exact", "ExactMatch", "exact match with any right answer"),
    "vqa": Entry("vqa", "VqaAccuracy", "VQA accuracy, the rule of VQAv2, over all references"),
    "relaxed": Entry("relaxed", "RelaxedAccuracy", "relaxed accuracy of ChartQA: numbers within 5 %"),
    "anls": Entry("anls", "Anls", "ANLS of DocVQA"),
    "bleu": Entry("captions", "Bleu", "BLEU of captions"),
    "cider": Entry("captions", "Cider", "CIDEr of captions"),
    "yes_no": Entry("yes_no", "YesNo", "yes or no as in POPE: accuracy, precision, recall, F1"),
    "choice": Entry("choice", "LikeliestChoice", "multiple choice by likelihood"),
    "choice_said": Entry("choice", "SaidChoice", "multiple choice by what is said"),
    "perplexity": Entry("perplexity", "Perplexity", "perplexity of the expected answers"),
}


def task_of(overrides: Sequence[str]) -> tuple[str, Task]:
    """``["task=exact", "task.ignore_case=true"]`` -> the task and its name; ``run`` without ``task=``.

    Raises:
        ConfigError: when there is no such task or field, or a value is of another type or out of its range.
    """
    values = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    name = values.pop("task", "run")
    if name not in TASKS:
        raise ConfigError(f"task={name}, expected one of {', '.join(TASKS)}\n  fix: set task=exact, for instance")
    entry = TASKS[name]
    kind = getattr(import_module(f"beni.evals.tasks.{entry.module}"), entry.name)
    known = {field.name: str(field.type) for field in fields(kind)}
    given: dict[str, Any] = {}
    for key, text in values.items():
        field = key.removeprefix("task.")
        if field not in known:
            there = ", ".join(f"task.{one}" for one in known) or "no fields"
            raise ConfigError(f"{key} is no field of task={name}, which has {there}\n  fix: leave it out")
        given[field] = _value(key, text, known[field])
    return name, kind(**given)


def _value(key: str, text: str, annotation: str) -> Any:
    """The value of a field, as YAML reads it.

    Raises:
        ConfigError: when it does not fit the field.
    """
    try:
        value = yaml.safe_load(text)
        fitting = fits(value, annotation)
    except (yaml.YAMLError, ValueError):  # the latter for a date that is in no calendar
        value, fitting = None, False
    if not fitting:
        raise ConfigError(f"{key}={text}, expected {expectation(annotation)}\n  fix: set {key}={example(annotation)}")
    return value
