"""What the loop asks of checkpoints: go on from one, or back to it, write one beside training, keep the best, survive a
full disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from beni.data.batch.ledger import Counts
from beni.distributed.collectives import Peers
from beni.errors import ResourceError, ResumeError
from beni.measure.goodput import Goodput
from beni.training.checkpoint.best import BestCheckpoint, BestLog
from beni.training.checkpoint.files import Checkpoints, Outcome
from beni.training.checkpoint.tensors import Initial, named_tensors, scatter
from beni.training.ema import Average
from beni.training.guard import Guard, Rewind

LAST_WORDS = 60.0
"""Seconds for which a run that fails waits for the checkpoint that is being written."""


@runtime_checkable
class SaverLog(BestLog, Protocol):
    """Where a saver reports to; the loop's log (training/job.py) has these."""

    def saved(self, step: int, values: Mapping[str, float]) -> None:
        """What a checkpoint took, or that it failed; told at the step at which it is known."""


class Saver:
    """The checkpoints of one call of ``fit``. Made and used by all ranks alike; only ``settled`` is each rank's own.

    Args:
        settings: the ``checkpoint`` section (config/sections/results.py).
        folder: of the run's checkpoints.
        signature: of the run; a checkpoint of another one is refused.
        guard: whose state is saved; where it may go back, what trains is copied to the CPU as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average,
        settings: Mapping[str, Any],
        folder: Path,
        signature: str,
        log: SaverLog,
        guard: Guard,
    ) -> None:
        self.model, self.optimizer, self.average, self.settings = model, optimizer, average, settings
        self.signature, self.log = signature, log
        self.guard = guard
        self._initial = Initial(model) if guard.rewinds else None
        self.clock = Goodput(torch.device("cpu"))
        """Of the run; what it says is saved, and the waiting for checkpoints told to it."""
        peers = Peers()
        self.best = BestCheckpoint(folder, settings["keep_best"], peers, log)
        self.checkpoints = Checkpoints(folder, peers, settings["keep"], self.best)
        self.saved: int | None = None
        """Last step that was saved or begun to be, or from which the run went on."""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.best.end()
        elif not issubclass(kind, KeyboardInterrupt):
            self.checkpoints.finish(LAST_WORDS)  # what is being written was good before the run failed
            with suppress(Exception):  # the error that ends the run is the one to be seen
                outcome = self.checkpoints.wait() if self.checkpoints.settled else None
                if outcome is not None:
                    self._written(outcome.problem is None)

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Takes the newest good checkpoint.

        Returns:
            Finished steps and the plain values saved with them; 0 and nothing without a checkpoint.

        Raises:
            ResumeError: when it belongs to another run or model.
        """
        skipped: list[str] = []
        found = self.checkpoints.newest(skipped)
        for reason in skipped:
            self.log.notice(f"checkpoint skipped: {reason}")
        if found is None:
            return 0, {}
        if found.values["signature"] != self.signature:
            raise ResumeError(
                f"{found.path} belongs to run {found.values['signature']}, this is {self.signature}\n"
                "  fix: set checkpoint.resume=never to start over (the old folder is kept)"
            )
        scatter(found.tensors, self.model, self.optimizer, self.average)
        self.best.resume(found.step)
        self.saved = found.step
        return found.step, found.values

    def go_back(self, rewind: Rewind) -> None:
        """Forgets what was learned, so that ``resume`` finds what it would in a new process."""
        assert self._initial is not None, "train.guard never rewinds"
        self.settle(rewind.step)
        self.log.notice(
            f"{rewind.told}; the run rewinds to its newest checkpoint (or to its start without one) "
            f"and will skip step {rewind.step}"
        )
        self._initial.restore(self.optimizer, self.average)

    def save(self, step: int, totals: Mapping[str, Counts]) -> None:
        """Begins to write a checkpoint; the one before is waited for, if need be."""
        self.settle(step)
        values = {
            "signature": self.signature,
            "ledger": {name: asdict(counts) for name, counts in totals.items()},
            "goodput": self.clock.split(),
            "guard": self.guard.state(),
        }
        with self.clock.span("checkpoint"):
            self.checkpoints.save(step, named_tensors(self.model, self.optimizer, self.average), values)
        self.saved = step

    @property
    def settled(self) -> bool:
        """Whether this rank's part of the last checkpoint is written, and nobody has been told."""
        return self.checkpoints.settled

    def settle(self, step: int) -> None:
        """Waits for the checkpoint that is being written, if there is one, and tells what became of it.

        Args:
            step: at which it is told.

        Raises:
            ResourceError: when it could not be written and ``checkpoint.on_error=halt``.
        """
        with self.clock.span("checkpoint"):
            outcome = self.checkpoints.wait()
        if outcome is None:
            return
        self.log.saved(step, _metrics(outcome))
        self._written(outcome.problem is None)
        if outcome.problem is None:
            return
        self.saved = None
        told = f"the checkpoint of step {outcome.step} could not be saved: {outcome.problem}"
        if self.settings["on_error"] == "halt":
            raise ResourceError(
                f"{told}\n  fix: free disk space; with checkpoint.on_error=continue training continues without it"
            )
        self.log.notice(f"{told}; the run continues, earlier checkpoints are kept")

    def keep_if_best(
        self, step: int, scores: Mapping[str, float], totals: Mapping[str, Counts], device: torch.device
    ) -> None:
        """Where the evaluation of ``step`` is the best until now, its checkpoint is written, if need be, and kept.

        Raises:
            ConfigError: when the evaluation has no metric ``checkpoint.keep_best``.
        """
        if not self.best.is_beaten(step, scores, device):
            return
        if self.saved != step:
            self.save(step, totals)
        self.best.propose(step, scores)
        if not self.checkpoints.writing:
            self._written(True)

    def _written(self, good: bool) -> None:
        if self.best.written(good):
            self.checkpoints.discard_old()


def _metrics(outcome: Outcome) -> dict[str, float]:
    return {
        "checkpoint/seconds": outcome.seconds,
        "checkpoint/stall_s": outcome.stalled,
        "checkpoint/failed": float(outcome.problem is not None),
    }
