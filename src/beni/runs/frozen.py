"""The frozen run of a run folder: what a job, a resumed run and an export read instead of ``conf/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from beni.errors import ResumeError


def load_frozen(folder: Path) -> dict[str, Any]:
    """The frozen run in ``folder``.

    Raises:
        ResumeError: when there is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ResumeError(f"{folder} has no config.yaml; expected a run folder that beni.train or a sweep has made")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
