"""Packages that only some tasks need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from beni.errors import WeightsError


def library(task: str, package: str, module: str) -> Any:
    """A module of a package.

    Raises:
        WeightsError: when it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise WeightsError(
            f"task={task} needs the package {package} ({error})\n  fix: pip install 'beni[evaluate]'"
        ) from error
