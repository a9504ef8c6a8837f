"""Trackers mirror ``metrics.jsonl``; that file is the truth, and a tracker that fails never costs a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.config.environment import unresolved


def settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is sent of a frozen run: without the launcher, whose shell lines and accounts concern nobody else,
    and with references to the environment as references.
    """
    return unresolved({key: value for key, value in run.items() if key != "launcher"})


class Tracker(ABC):
    """Receives what is written to metrics.jsonl. Subclasses are final."""

    @abstractmethod
    def start(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        """Begin, or go on from ``step``, mirroring the run in ``folder``."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl."""

    @abstractmethod
    def finish(self, state: str) -> None:
        """The run has ended as ``finished``, ``failed`` or ``preempted``."""
