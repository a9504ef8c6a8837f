"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch

from beni.data.batch.loader import load
from beni.training.attempt import Attempt
from beni.training.checkpoint.saver import Saver
from beni.training.ema import Average
from beni.training.guard import Guard, Rewind
from beni.training.job import TrainingJob
from beni.training.optim.build import build_optimizer
from beni.training.settings import TrainerSettings
from beni.training.step import errors_as_values


class Trainer:
    """Runs the steps of one run."""

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings

    def fit(self, job: TrainingJob) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            ResumeError: when the checkpoints belong to another run.
            Preempted: when a signal has ended the run; it is saved then.
            ResourceError: when a checkpoint cannot be saved and ``checkpoint.on_error=halt``.
            TrainabilityError: when what trains differs from the plan.
            DivergenceError: when a loss or gradient is not finite, or the loss has jumped, and ``train.guard`` ends
                the run then.
        """
        optimizer = build_optimizer(job.model, self.settings.optim)
        average, guard = Average(job.model, self.settings.ema), Guard(self.settings.guard)
        folder = (self.settings.checkpoint, job.checkpoints, job.signature)
        with Saver(job.model, optimizer, average, *folder, job.log, guard) as saver:
            while True:
                try:
                    self._fit(job, optimizer, average, saver)
                    break
                except Rewind as rewind:
                    saver.go_back(rewind)
                    spent, started = saver.clock.carried_over()
                    job = replace(job, spent=spent, started=started)
        average.swap(job.model)  # what is exported and shown after this

    def _fit(self, job: TrainingJob, optimizer: torch.optim.Optimizer, average: Average, saver: Saver) -> None:
        attempt = Attempt(self.settings, job, optimizer, average, saver)
        pin = job.environment.device.type == "cuda"
        loaded = load(job.steps, attempt.done, self.settings.steps, self.settings.workers, pin)
        with attempt.thaw, job.preemption.deferred(), closing(loaded):
            for step, drawn in enumerate(errors_as_values(loaded), start=attempt.done):
                batches = attempt.agree(step, drawn)
                taken = attempt.take(step, batches)
                attempt.tell(step + 1, taken)
            attempt.end()
