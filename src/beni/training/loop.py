"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from beni.data.ledger import Counts, Ledger
from beni.data.loader import Steps, load
from beni.distributed.collectives import agree, gather_objects, sum_counts
from beni.distributed.environment import Environment
from beni.errors import DataError, ResumeError
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.streams import derive
from beni.training import checkpoint
from beni.training.ema import Average
from beni.training.optim import build_optimizer
from beni.training.schedule import learning_rate
from beni.training.state import named_tensors, scatter, whole
from beni.training.step import clip_and_update, forward_backward
from beni.training.thaw import Thaw
from beni.training.trainable import TrainabilityCheck
from beni.types import Batch
from beni.vision.feature_bank import FeatureBank

LATEST_CHECK = 100
"""The step after which a run that had no picture until then is held to its plan."""
FEW_BAD = 10
"""So many bad pictures end no run, whatever their share."""


@runtime_checkable
class Log(Protocol):
    """Where the loop reports to; run.py connects it to metrics.jsonl, status.json, the trackers and the terminal."""

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a finished step, on log steps."""

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` finished steps."""

    def data(self, step: int, values: Mapping[str, float], faults: Sequence[Mapping[str, Any]]) -> None:
        """What the run has been shown until now, on log steps, and the bad pictures since the last one."""

    def notice(self, text: str) -> None:
        """Something a reader of the run should know."""


@dataclass(frozen=True)
class Job:
    """What one call of ``fit`` works on.

    Attributes:
        steps: optimizer step -> this rank's micro-batches.
        checkpoints: folder of the run's checkpoints.
        signature: of the run; a checkpoint of another one is refused.
        max_bad: share of all pictures that may be bad before the run ends.
        evaluate: called with the number of finished steps.
    """

    model: BeniForConditionalGeneration
    steps: Steps
    environment: Environment
    optim: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    checkpoints: Path
    signature: str
    max_bad: float
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
        activation_checkpointing: str,
        memory_budget: float,
        compile: bool,
        feature_bank: str | None,
        ema: float,
        plan: dict[str, str],
        thaw: dict[str, float],
    ) -> None:
        self.steps, self.seed, self.precision = steps, seed, precision
        self.workers, self.log_every, self.plan = workers, log_every, plan
        self.ema, self.thaw = ema, thaw

    def fit(self, job: Job) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            ResumeError: when the checkpoints belong to another run.
            TrainabilityError: when what trains differs from the plan.
            FloatingPointError: when the loss is not finite.
        """
        model, device = job.model, job.environment.device
        optimizer = build_optimizer(model, job.optim)
        average = Average(model, self.ema)
        done, ledger = self._resume(job, optimizer, average)
        faults: list[dict[str, Any]] = []
        thaw = Thaw(model, self.plan, self.thaw, self.steps, done)
        check = TrainabilityCheck.before_first_step(model) if done == 0 else None
        window = Window(model.feature_bank)

        for step, batches in enumerate(
            load(job.steps, done, self.steps, self.workers, pin=device.type == "cuda"), start=done
        ):
            window.data_arrived()
            if not agree(batches[0].order, device):
                raise RuntimeError(f"ranks drew different samples for step {step + 1}; do all see the same data files?")
            ledger.add(batch.counts for batch in batches)
            for notice in batches[0].notices:
                job.log.notice(notice)
            faults += [{"step": step + 1, **fault} for batch in batches for fault in batch.faults]
            for component in thaw.due(step):
                job.log.notice(f"{component} trains from step {step + 1} on (train.thaw)")
                check = TrainabilityCheck.before_first_step(model)
            torch.manual_seed(derive(self.seed, "dropout", step, job.environment.rank))
            loss, labels = forward_backward(model, batches, step, device, self.precision)
            # a gradient reaches the vision encoder in a step with a picture, and the first need not have one
            due = check is not None and (step + 1 in (self.steps, LATEST_CHECK) or _pictured(batches, device))
            if check is not None and due:
                for name in check.gradients(model):
                    job.log.notice(f"{name} never receives a gradient in this run and is frozen")
            rate = learning_rate(step, self.steps, job.optim)
            norm = clip_and_update(model, optimizer, rate, job.optim["clip"])
            average.update()
            if check is not None and due:
                check.after_first_step(model)
                check = None
            window.step_done(sum(len(b.ids) for b in batches), sum(b.num_tokens for b in batches))

            finished = step + 1
            last = finished == self.steps
            logs = finished % self.log_every == 0 or last or finished == 1
            saves = last or (job.checkpoint["every"] and finished % job.checkpoint["every"] == 0)
            if logs:
                values = {"loss": loss, "lr": rate, "grad_norm": norm, "label_tokens": labels, **window.rates(device)}
                job.log.train(finished, values)
                window = Window(model.feature_bank)
            if logs or saves:  # what a checkpoint leaves behind is told before it: a run that goes on there cannot
                totals = self._report_data(job, finished, ledger, faults)
                faults = []
                if saves:
                    self._save(job, optimizer, average, finished, totals)
            if last or (job.eval_every and finished % job.eval_every == 0):
                with average.in_place_of_weights(model):
                    job.evaluate(finished)
                thaw.set_modes()
                window = Window(model.feature_bank)

        average.swap(model)  # what is exported and shown after this
        if done == self.steps:
            job.evaluate(done)

    def _report_data(self, job: Job, step: int, ledger: Ledger, faults: list[dict[str, Any]]) -> dict[str, Counts]:
        """Tells the log, and ends the run where too many pictures are bad: all ranks alike, by the sums over them.

        Returns:
            The ledger's totals.
        """
        totals = ledger.totals(partial(sum_counts, device=job.environment.device))
        new = gather_objects(faults) if sum_counts([len(faults)], job.environment.device)[0] else []
        job.log.data(step, Ledger.metrics(totals), new)
        bad = sum(counts.bad for counts in totals.values())
        wanted = bad + sum(counts.images for counts in totals.values())
        if bad > max(FEW_BAD, job.max_bad * wanted):
            first = f", the last because of: {new[-1]['reason']}" if new else ""
            raise DataError(
                f"{bad} of {wanted} pictures are bad, images.max_bad={job.max_bad} allows fewer{first}\n"
                "  fix: see data_errors.jsonl in the run folder; mend the data, or raise images.max_bad"
            )
        return totals

    def _resume(self, job: Job, optimizer: torch.optim.Optimizer, average: Average) -> tuple[int, Ledger]:
        skipped: list[str] = []
        found = checkpoint.newest(job.checkpoints, skipped)
        for reason in skipped:
            job.log.notice(f"checkpoint passed over: {reason}")
        if found is None:
            job.log.begin(0)
            return 0, Ledger(job.steps.source.names)
        if found.values["signature"] != job.signature:
            raise ResumeError(
                f"{found.path} belongs to run {found.values['signature']}, this is {job.signature}\n"
                "  fix: set checkpoint.resume=never to start over (the old folder is kept)"
            )
        scatter(found.tensors, job.model, optimizer, average)
        job.log.begin(found.step)
        before = {name: Counts(**counts) for name, counts in found.values["ledger"].items()}
        return found.step, Ledger(job.steps.source.names, before if job.environment.is_main else {})

    def _save(
        self,
        job: Job,
        optimizer: torch.optim.Optimizer,
        average: Average,
        step: int,
        totals: Mapping[str, Counts],
    ) -> None:
        tensors = whole(named_tensors(job.model, optimizer, average))
        if job.environment.is_main:
            values = {"signature": job.signature, "ledger": {name: asdict(counts) for name, counts in totals.items()}}
            checkpoint.save(job.checkpoints, step, tensors, values, job.checkpoint["keep"])


def _pictured(batches: Sequence[Batch], device: torch.device) -> bool:
    """Whether any rank has a picture in this step."""
    return sum_counts([sum(batch.pixels is not None for batch in batches)], device)[0] > 0


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
        """A step has been taken on so many samples and positions of this rank."""
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self.mark = time.perf_counter()

    def rates(self, device: torch.device) -> dict[str, float]:
        """Of all ranks per second, as a share of wall time and, with a feature bank, of this rank's views in it."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        samples, tokens = sum_counts([self.samples, self.tokens], device)
        rates = {
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "data_wait": self.waiting / seconds,
        }
        if self.bank is not None:
            hits, misses = self.bank.hits - self.looked_up[0], self.bank.misses - self.looked_up[1]
            if hits + misses:
                rates["feature_bank_hits"] = hits / (hits + misses)
        return rates
