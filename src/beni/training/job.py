"""What one call of the training loop works on, and where it reports to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from beni.data.batch.loader import Steps
from beni.distributed.environment import Environment
from beni.distributed.watchdog import Watchdog
from beni.measure.profile import Profile
from beni.model.modeling import BeniForConditionalGeneration
from beni.training.checkpoint.saver import SaverLog
from beni.training.preempt import Preemption
from beni.training.sample_counter import DataLog
from beni.training.throughput import Meter


@runtime_checkable
class Log(SaverLog, DataLog, Protocol):
    """Where the loop reports to; run.py connects it to metrics.jsonl, status.json, the trackers and the terminal."""

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a finished step, on log steps."""

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` finished steps."""


@dataclass(frozen=True)
class TrainingJob:
    """What one call of ``fit`` works on.

    Attributes:
        steps: optimizer step -> this rank's micro-batches.
        checkpoints: folder of the run's checkpoints.
        signature: of the run; a checkpoint of another one is refused.
        evaluate: called with the number of finished steps; returns the scores. Raises ``Preempted`` when asked to end.
        preemption: the signals that end the run early.
        watchdog: is told how far this rank has come.
        meter: what steps are billed; None bills none.
        profile: of some steps; None on other ranks, or where there is none.
        faults: lines of data_errors.jsonl, but for the step, of what was left out before the first.
        spent: seconds that the run took until ``started``.
        started: ``time.perf_counter()`` when this call began; None takes now.
    """

    model: BeniForConditionalGeneration
    steps: Steps
    environment: Environment
    checkpoints: Path
    signature: str
    evaluate: Callable[[int], Mapping[str, float]]
    log: Log
    preemption: Preemption = field(default_factory=Preemption)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0))
    meter: Meter | None = None
    profile: Profile | None = None
    faults: Sequence[Mapping[str, Any]] = ()
    spent: float = 0.0
    started: float | None = None
