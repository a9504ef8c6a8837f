"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from beni.data.batch.loader import load
from beni.model.inputs import Loss
from beni.training.attempt import Attempt, Pace
from beni.training.checkpoint.saver import Saver
from beni.training.ema import Average
from beni.training.guard import Guard, Rewind
from beni.training.job import Job
from beni.training.optim.build import build_optimizer
from beni.training.step import caught


class Trainer:
    """Runs the steps of one run. Its settings are the ``train`` section (config/schema.py)."""

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        precision: str,
        layout: str,
        device: str,
        threads: int,
        workers: int,
        log_every: int,
        init_from: str | None,
        activation_checkpointing: str,
        memory_budget: float,
        compile: bool,
        loss: Loss,
        feature_bank: str | None,
        ema: float,
        watchdog_s: float,
        plan: dict[str, str],
        thaw: dict[str, float],
        guard: dict[str, Any],
        profile: str | int | None,
        peak_tflops: float | None,
    ) -> None:
        self.pace = Pace(steps, seed, precision, log_every, loss, plan, thaw)
        self.workers, self.ema, self.guard = workers, ema, guard

    def fit(self, job: Job) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            ResumeError: when the checkpoints belong to another run.
            Preempted: when a signal has ended the run; it is saved then.
            ResourceError: when a checkpoint cannot be saved and ``checkpoint.on_error=halt``.
            TrainabilityError: when what trains differs from the plan.
            DivergenceError: when a loss or gradient is not finite, or the loss has jumped, and ``train.guard`` ends
                the run then.
        """
        optimizer, average, guard = (
            build_optimizer(job.model, job.optim),
            Average(job.model, self.ema),
            Guard(self.guard),
        )
        folder = (job.checkpoint, job.checkpoints, job.signature)
        with Saver(job.model, optimizer, average, *folder, job.log, guard) as saver:
            while True:
                try:
                    self._fit(job, optimizer, average, saver)
                    break
                except Rewind as rewind:
                    saver.go_back(rewind)
                    spent, started = saver.clock.handed_over()
                    job = replace(job, spent=spent, started=started)
        average.swap(job.model)  # what is exported and shown after this

    def _fit(self, job: Job, optimizer: torch.optim.Optimizer, average: Average, saver: Saver) -> None:
        attempt = Attempt(self.pace, job, optimizer, average, saver)
        pin = job.environment.device.type == "cuda"
        loaded = load(job.steps, attempt.done, self.pace.steps, self.workers, pin)
        with attempt.thaw, job.preemption.deferred(), closing(loaded):
            for step, drawn in enumerate(caught(loaded), start=attempt.done):
                batches = attempt.agree(step, drawn)
                taken = attempt.take(step, batches)
                attempt.tell(step + 1, taken)
            attempt.end()
