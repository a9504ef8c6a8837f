"""The frozen run of a run folder: what a job, a resumed run and an export read instead of ``conf/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from beni.config.environment import resolved
from beni.errors import ResumeError
from beni.runs import shape
from beni.runs.files import CONFIG, replace
from beni.runs.shape import misfit


def save_frozen(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes a run into its folder. Once it has begun, whoever runs the frozen config goes on with it, so
    ``checkpoint.resume`` is ``auto`` there.

    Raises:
        OSError: when the disk does not take it.
    """
    kept = {**run, "checkpoint": {**run["checkpoint"], "resume": "auto"}}
    replace(folder / CONFIG, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def is_frozen(folder: Path) -> bool:
    """Whether ``folder`` holds a run."""
    return (folder / CONFIG).is_file()


def load_frozen(folder: Path) -> dict[str, Any]:
    """The frozen run in ``folder``.

    Raises:
        ResumeError: when there is none, or it is damaged.
        ConfigError: when a value comes from a variable of the environment that is not set here.
    """
    if not is_frozen(folder):
        raise ResumeError(
            f"{folder} has no {CONFIG}; expected a run folder that beni.train or a sweep has made\n"
            f"  fix: name a folder below {folder} that has one, or restore the file from a copy"
        )
    frozen, problem = read_frozen(folder)
    if problem is not None:
        raise ResumeError(
            f"{folder}: {problem}\n  fix: restore {CONFIG} from a copy; or move it away, and the command that started "
            "the run (or its sweep) writes it again and resumes"
        )
    return resolved(frozen)


def read_frozen(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The frozen run in ``folder``, or an empty one and the sentence that says why there is none to read."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except OSError as error:
        return {}, f"{CONFIG} cannot be read ({error.strerror or error})"
    except UnicodeDecodeError:
        return {}, f"{CONFIG} is not UTF-8"
    try:
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}, f"{CONFIG} is not complete YAML"
    problem = misfit(value, shape.OF_CONFIG)
    return (value, None) if problem is None else ({}, f"{CONFIG} is damaged: {problem}")
