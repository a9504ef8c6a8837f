"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from beni.data.loader import Steps, load
from beni.distributed.environment import Environment
from beni.errors import ResumeError
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.streams import derive
from beni.training import checkpoint
from beni.training.optim import build_optimizer, learning_rate
from beni.training.state import gather, scatter
from beni.training.step import clip_and_update, forward_backward
from beni.training.trainable import TrainabilityCheck, set_modes
from beni.vision.feature_bank import FeatureBank


@runtime_checkable
class Log(Protocol):
    """Where the loop reports to; run.py connects it to metrics.jsonl, status.json, the trackers and the terminal."""

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a finished step, on log steps."""

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` finished steps."""

    def notice(self, text: str) -> None:
        """Something a reader of the run should know."""


@dataclass(frozen=True)
class Job:
    """What one call of ``fit`` works on.

    Attributes:
        steps: optimizer step -> this rank's micro-batches.
        checkpoints: folder of the run's checkpoints.
        signature: of the run; a checkpoint of another one is refused.
        evaluate: called with the number of finished steps.
    """

    model: BeniForConditionalGeneration
    steps: Steps
    environment: Environment
    optim: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    checkpoints: Path
    signature: str
    eval_every: int
    evaluate: Callable[[int], None]
    log: Log


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
        feature_bank: str | None,
        plan: dict[str, str],
    ) -> None:
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.precision, self.workers, self.log_every, self.plan = precision, workers, log_every, plan

    def fit(self, job: Job) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            ResumeError: when the checkpoints belong to another run.
            TrainabilityError: when what trains differs from the plan.
            FloatingPointError: when the loss is not finite.
        """
        model, device = job.model, job.environment.device
        optimizer = build_optimizer(model, job.optim)
        done = self._resume(job, optimizer)
        check = TrainabilityCheck.before_first_step(model) if done == 0 else None
        set_modes(model, self.plan)
        window = Window(model.feature_bank)

        for step, batches in enumerate(
            load(job.steps, done, self.steps, self.workers, pin=device.type == "cuda"), start=done
        ):
            window.data_arrived()
            torch.manual_seed(derive(self.seed, "dropout", step, job.environment.rank))
            loss, labels = forward_backward(model, batches, step, device, self.precision)
            if check is not None:
                for name in check.gradients(model):
                    job.log.notice(f"{name} never receives a gradient in this run and is frozen")
            rate = learning_rate(step, self.steps, job.optim)
            norm = clip_and_update(model, optimizer, rate, job.optim["clip"])
            if check is not None:
                check.after_first_step(model)
                check = None
            window.step_done(self.batch_size, sum(b.num_tokens for b in batches) * job.environment.world)

            finished = step + 1
            last = finished == self.steps
            if finished % self.log_every == 0 or last or finished == 1:
                values = {"loss": loss, "lr": rate, "grad_norm": norm, "label_tokens": labels, **window.rates()}
                job.log.train(finished, values)
                window = Window(model.feature_bank)
            if last or (job.checkpoint["every"] and finished % job.checkpoint["every"] == 0):
                self._save(job, optimizer, finished)
            if last or (job.eval_every and finished % job.eval_every == 0):
                job.evaluate(finished)
                set_modes(model, self.plan)
                window = Window(model.feature_bank)

        if done == self.steps:
            job.evaluate(done)

    def _resume(self, job: Job, optimizer: torch.optim.Optimizer) -> int:
        skipped: list[str] = []
        found = checkpoint.newest(job.checkpoints, skipped)
        for reason in skipped:
            job.log.notice(f"checkpoint passed over: {reason}")
        if found is None:
            job.log.begin(0)
            return 0
        if found.values["signature"] != job.signature:
            raise ResumeError(
                f"{found.path} belongs to run {found.values['signature']}, this is {job.signature}\n"
                "  fix: set checkpoint.resume=never to start over (the old folder is kept)"
            )
        scatter(found.tensors, job.model, optimizer)
        job.log.begin(found.step)
        return found.step

    def _save(self, job: Job, optimizer: torch.optim.Optimizer, step: int) -> None:
        tensors = gather(job.model, optimizer)
        if job.environment.is_main:
            values = {"signature": job.signature}
            checkpoint.save(job.checkpoints, step, tensors, values, job.checkpoint["keep"])


class Window:
    """Rates since the last log line."""

    def __init__(self, bank: FeatureBank | None) -> None:
        self.start = self.mark = time.perf_counter()
        self.waiting = 0.0
        self.samples = self.tokens = 0
        self.bank, self.looked_up = bank, (0, 0) if bank is None else (bank.hits, bank.misses)

    def data_arrived(self) -> None:
        """The next batch is here; what passed since the last step was waiting."""
        self.waiting += time.perf_counter() - self.mark

    def step_done(self, samples: int, tokens: int) -> None:
        """A step has been taken on so many samples and positions (of all ranks)."""
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self.mark = time.perf_counter()

    def rates(self) -> dict[str, float]:
        """Per second, as a share of wall time and, with a feature bank, of this rank's views that were in it."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        rates = {
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "data_wait": self.waiting / seconds,
        }
        if self.bank is not None:
            hits, misses = self.bank.hits - self.looked_up[0], self.bank.misses - self.looked_up[1]
            if hits + misses:
                rates["feature_bank_hits"] = hits / (hits + misses)
        return rates
