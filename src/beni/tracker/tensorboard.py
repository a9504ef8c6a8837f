"""TensorBoard: mirrors metrics.jsonl into event files below the run folder (``tensorboard --logdir runs``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.errors import ConfigError
from beni.tracker.base import Tracker

logger = logging.getLogger(__name__)


class TensorboardTracker(Tracker):
    """Writes one scalar a value to ``<run>/tensorboard``, under the value's name in metrics.jsonl."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        """Opens an event file. TensorBoard then hides what earlier files have after ``step``.

        Raises:
            ConfigError: when the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"tracker=tensorboard needs the package tensorboard, which cannot be imported ({error})\n"
                "  fix: pip install 'beni[tensorboard]', or set tracker=jsonl"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        try:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
        except OSError as error:  # its writing thread's: a full or vanished disk
            self._writer = None
            logger.warning("tracker=tensorboard stops at step %d: %s; metrics.jsonl continues", step, error)

    def finish(self, state: str) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except OSError as error:
            logger.warning("tracker=tensorboard: the last values were not written: %s; metrics.jsonl has them", error)
