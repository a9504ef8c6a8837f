"""``tracker=jsonl``: no mirror. The run itself writes metrics.jsonl (tracker/metrics.py), whatever the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.tracker.base import Tracker


class JsonlTracker(Tracker):
    """Does nothing: metrics.jsonl needs no tracker to be written, and nobody else is told."""

    def start(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def finish(self, state: str) -> None:
        pass
