"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch

from beni.data.ledger import Counts, Ledger
from beni.data.loader import Steps, load
from beni.distributed.collectives import agree, gather_objects, sum_counts
from beni.distributed.environment import Environment
from beni.distributed.watchdog import Watchdog
from beni.errors import DataError, Preempted
from beni.model.loss import Loss
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.streams import derive
from beni.training.ema import Average
from beni.training.optim import build_optimizer
from beni.training.preempt import Preemption
from beni.training.saver import Saver, SaverLog
from beni.training.schedule import learning_rate
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
class Log(SaverLog, Protocol):
    """Where the loop reports to; run.py connects it to metrics.jsonl, status.json, the trackers and the terminal."""

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a finished step, on log steps."""

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` finished steps."""

    def data(self, step: int, values: Mapping[str, float], faults: Sequence[Mapping[str, Any]]) -> None:
        """What the run has been shown until now, on log steps, and the bad pictures since the last one."""


@dataclass(frozen=True)
class Job:
    """What one call of ``fit`` works on.

    Attributes:
        steps: optimizer step -> this rank's micro-batches.
        checkpoints: folder of the run's checkpoints.
        signature: of the run; a checkpoint of another one is refused.
        max_bad: share of all pictures that may be bad before the run ends.
        evaluate: called with the number of finished steps; returns the scores. Raises ``Preempted`` when asked to end.
        preemption: the signals that end the run early.
        watchdog: is told how far this rank has come.
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
    evaluate: Callable[[int], Mapping[str, float]]
    log: Log
    preemption: Preemption = field(default_factory=Preemption)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0))


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
    ) -> None:
        self.steps, self.seed, self.precision = steps, seed, precision
        self.workers, self.log_every, self.plan = workers, log_every, plan
        self.ema, self.thaw = ema, thaw
        self.loss: Loss = loss

    def fit(self, job: Job) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            ResumeError: when the checkpoints belong to another run.
            Preempted: when a signal has ended the run; it is saved then.
            ResourceError: when a checkpoint cannot be saved and ``checkpoint.on_error=halt``.
            TrainabilityError: when what trains differs from the plan.
            FloatingPointError: when the loss is not finite.
        """
        optimizer, average = build_optimizer(job.model, job.optim), Average(job.model, self.ema)
        with Saver(job.model, optimizer, average, job.checkpoint, job.checkpoints, job.signature, job.log) as saver:
            self._fit(job, optimizer, average, saver)
        average.swap(job.model)  # what is exported and shown after this

    def _fit(self, job: Job, optimizer: torch.optim.Optimizer, average: Average, saver: Saver) -> None:
        model, device, beat = job.model, job.environment.device, job.watchdog.beat
        done, before = saver.resume()
        ledger = self._begin(job, done, before)
        if 0 < done < self.steps and self._evaluates(job, done):  # it may have ended between saving and scoring
            beat("evaluate", done - 1)
            self._evaluate(job, average, saver, done, self._totals(job, ledger))
        faults: list[dict[str, Any]] = []
        thaw = Thaw(model, self.plan, self.thaw, self.steps, done)
        check = TrainabilityCheck.before_first_step(model) if done == 0 else None
        window = Window(model.feature_bank)

        beat("data", done)
        loaded = load(job.steps, done, self.steps, self.workers, pin=device.type == "cuda")
        with job.preemption.deferred(), closing(loaded):
            for step, batches in enumerate(loaded, start=done):
                window.data_arrived()
                beat("step", step)
                same, (stop, settled) = agree(batches[0].order, [job.preemption.asked, saver.settled], device)
                if not same:
                    raise RuntimeError(f"ranks drew different samples for step {step + 1}; do they see the same files?")
                if settled:
                    saver.settle(step)
                if stop:
                    told = saver.saved == step
                    totals = self._totals(job, ledger) if told else self._report_data(job, step, ledger, faults)
                    self._stop(job, saver, step, totals)
                ledger.add(batch.counts for batch in batches)
                for notice in batches[0].notices:
                    job.log.notice(notice)
                faults += [{"step": step + 1, **fault} for batch in batches for fault in batch.faults]
                for component in thaw.due(step):
                    job.log.notice(f"{component} trains from step {step + 1} on (train.thaw)")
                    check = TrainabilityCheck.before_first_step(model)
                torch.manual_seed(derive(self.seed, "dropout", step, job.environment.rank))
                loss, labels = forward_backward(model, batches, step, device, self.precision, self.loss)
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
                    rates = window.rates(device)
                    job.log.train(
                        finished, {"loss": loss, "lr": rate, "grad_norm": norm, "label_tokens": labels, **rates}
                    )
                    window = Window(model.feature_bank)
                evaluates = self._evaluates(job, finished)
                # what a checkpoint leaves behind is told before it: a run that goes on there cannot
                if logs or saves or evaluates:
                    totals = self._report_data(job, finished, ledger, faults)
                    faults = []
                    if saves:
                        beat("save", step)
                        saver.save(finished, totals)
                    if evaluates and not last:
                        beat("evaluate", step)
                        self._evaluate(job, average, saver, finished, totals)
                        thaw.set_modes()
                        window = Window(model.feature_bank)
                beat("data", finished)
            beat("evaluate", self.steps)
            self._evaluate(job, average, saver, self.steps, self._totals(job, ledger))
            saver.settle(self.steps)

    def _evaluates(self, job: Job, finished: int) -> bool:
        return finished == self.steps or (job.eval_every > 0 and finished % job.eval_every == 0)

    def _evaluate(self, job: Job, average: Average, saver: Saver, step: int, totals: Mapping[str, Counts]) -> None:
        """Scores the average, where there is one, and keeps the checkpoint of the best score; a signal ends the run
        between two of its batches.
        """
        try:
            with average.in_place_of_weights(job.model):
                scores = job.evaluate(step)
        except Preempted:
            self._stop(job, saver, step, totals)
        job.watchdog.beat()
        if saver.improves(scores, job.environment.device):
            if saver.saved != step:
                saver.save(step, totals)
            saver.keep_best(step, scores)

    def _stop(self, job: Job, saver: Saver, step: int, totals: Mapping[str, Counts]) -> NoReturn:
        """Saves what is not saved yet, and ends the run.

        Raises:
            Preempted: always.
        """
        job.watchdog.beat("save")
        if saver.saved != step and step > 0:
            saver.save(step, totals)
        saver.settle(step)
        kept = "its checkpoint is saved, the same command goes on from there" if saver.saved == step else "not saved"
        raise Preempted(f"{job.preemption.name} after step {step}: {kept}")

    def _begin(self, job: Job, done: int, before: Mapping[str, Any]) -> Ledger:
        job.log.begin(done)
        counted = {name: Counts(**counts) for name, counts in before["ledger"].items()} if before else {}
        return Ledger(job.steps.source.names, counted if job.environment.is_main else {})

    def _totals(self, job: Job, ledger: Ledger) -> dict[str, Counts]:
        return ledger.totals(partial(sum_counts, device=job.environment.device))

    def _report_data(self, job: Job, step: int, ledger: Ledger, faults: list[dict[str, Any]]) -> dict[str, Counts]:
        """Tells the log, and ends the run where too many pictures are bad: all ranks alike, by the sums over them.

        Returns:
            The ledger's totals.
        """
        totals = self._totals(job, ledger)
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
