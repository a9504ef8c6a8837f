"""The tasks of ``python -m beni.evaluate``, all of them: the class of each is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

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
READERS = {"int": int, "float": (int, float), "bool": bool}
"""Annotation of a field -> what its value may be."""


def task_of(overrides: Sequence[str]) -> tuple[str, Task]:
    """``["task=exact", "task.ignore_case=true"]`` -> the task and its name; ``run`` without ``task=``.

    Raises:
        ConfigError: when there is no such task or field, or a value is of another type.
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
        value = yaml.safe_load(text)
        expected = READERS[known[field]]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ConfigError(f"{key}={text}, expected {known[field]}\n  fix: set {key} to another value")
        given[field] = value
    if given.get("new_tokens", 1) < 1:
        raise ConfigError(f"task.new_tokens={given['new_tokens']}, expected at least 1\n  fix: set task.new_tokens=32")
    return name, kind(**given)
