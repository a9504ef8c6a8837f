"""The frozen run of a run folder: what a job, a resumed run and an export read instead of ``conf/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from beni.errors import ResumeError
from beni.runs.files import CONFIG, replace


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
        ResumeError: when there is none.
    """
    if not is_frozen(folder):
        raise ResumeError(f"{folder} has no {CONFIG}; expected a run folder that beni.train or a sweep has made")
    return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
