"""The training loop: resume, then step by step load, forward, backward, update, log, save, evaluate.

Nothing random lives outside named streams and nothing is stored but the step: dropout is seeded by (seed, step, rank),
the schedule and the learning rate are functions of the step. So a run killed anywhere and started again gives the
digits of one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NoReturn

import torch

from beni.data.batch.ledger import Counts
from beni.data.batch.loader import load
from beni.distributed.collectives import sum_counts
from beni.errors import Preempted
from beni.measure.goodput import Goodput
from beni.model.inputs import Loss
from beni.nn.streams import derive
from beni.training.checkpoint.saver import Saver
from beni.training.ema import Average
from beni.training.guard import Guard, Rewind
from beni.training.job import Job
from beni.training.optim.build import build_optimizer
from beni.training.optim.rate import learning_rate
from beni.training.shown import Shown
from beni.training.step import caught, component_norms, forward_backward, gradient_norm, together, update, whole
from beni.training.thaw import Thaw
from beni.training.trainable import TrainabilityCheck, named_trainable
from beni.training.window import Window
from beni.types import Batch

LATEST_CHECK = 100
"""The step after which a run that had no picture until then is held to its plan."""


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
        self.steps, self.seed, self.precision = steps, seed, precision
        self.workers, self.log_every, self.plan = workers, log_every, plan
        self.ema, self.thaw = ema, thaw
        self.loss: Loss = loss
        self.guard = guard

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
        model, device, beat = job.model, job.environment.device, job.watchdog.beat
        done, before = saver.resume()
        guard = saver.guard
        guard.begin(before.get("guard", {}))
        job.log.begin(done)
        shown = Shown(
            job.steps.source.names,
            before.get("ledger", {}),
            job.environment.is_main,
            job.max_bad,
            job.environment.device,
        )
        clock = saver.clock = Goodput(device, before.get("goodput"), job.spent, job.started)
        if 0 < done < self.steps and self._evaluates(job, done):  # it may have ended between saving and scoring
            beat("evaluate", done - 1)
            with job.preemption.deferred():
                self._evaluate(job, average, saver, done, shown.totals())
        thaw = Thaw(model, self.plan, self.thaw, self.steps, done)
        check = TrainabilityCheck.before_first_step(model, thaw.trains) if done == 0 else None
        window = Window(device, clock, model.feature_bank, job.meter)
        self._recount(job)

        if job.profile is not None:
            job.profile.reached(done, clock)
        beat("data", done)
        clock.go("data")
        loaded = load(job.steps, done, self.steps, self.workers, pin=device.type == "cuda")
        with thaw, job.preemption.deferred(), closing(loaded):
            for step, drawn in enumerate(caught(loaded), start=done):
                clock.go("communication")
                beat("step", step)
                batches, (stop, settled) = together(drawn, step, [job.preemption.asked, saver.settled], device)
                clock.go("other")
                if settled:
                    saver.settle(step)
                if stop:
                    totals = shown.totals() if saver.saved == step else shown.report(step, job.log)
                    self._stop(job, saver, step, totals)
                shown.add(batches, step + 1)
                for notice in batches[0].notices:
                    job.log.notice(notice)
                for component in thaw.due(step):
                    job.log.notice(f"{component} trains from step {step + 1} on (train.thaw)")
                    check = TrainabilityCheck.before_first_step(model, thaw.trains)
                    self._recount(job)
                clock.go("compute")
                torch.manual_seed(derive(self.seed, "dropout", step, job.environment.rank))
                loss, labels = forward_backward(model, batches, step, device, self.precision, self.loss, clock)
                norms = gradient_norm(model)
                rate, norm = learning_rate(step, self.steps, job.optim), whole(norms)
                samples = (sample for batch in batches for sample in batch.ids)
                accepted, told = guard.accepts(model, step + 1, loss, norm, samples)
                if told:
                    job.log.notice(told)
                # a gradient reaches the vision encoder in a step with a picture, and the first need not have one
                due = accepted and check is not None
                due = due and (step + 1 in (self.steps, LATEST_CHECK) or _pictured(batches, device))
                if check is not None and due:
                    for name in check.gradients(model):
                        job.log.notice(f"{name} never receives a gradient in this run and is frozen")
                finished = step + 1
                last = finished == self.steps
                logs = finished % self.log_every == 0 or last or finished == 1
                by_component = component_norms(model) if logs else {}
                if accepted:
                    update(model, optimizer, rate, job.optim["clip"], norms)
                    average.update()
                else:
                    optimizer.zero_grad(set_to_none=True)
                clock.go("other")
                if check is not None and due:
                    check.after_first_step(model)
                    check = None
                window.step_done(batches)
                if job.profile is not None:
                    job.profile.reached(finished, clock)
                saves = last or (job.checkpoint["every"] and finished % job.checkpoint["every"] == 0)
                if logs:
                    values = {"loss": loss, "lr": rate, "grad_norm": norm, "label_tokens": labels}
                    values |= guard.metrics()
                    job.log.train(finished, values | by_component | window.line())
                    window.begin()
                evaluates = self._evaluates(job, finished)
                # what a checkpoint leaves behind is told before it: a run that goes on there cannot
                if logs or saves or evaluates:
                    totals = shown.report(finished, job.log)
                    if saves:
                        beat("save", step)
                        saver.save(finished, totals)
                    if evaluates and not last:
                        beat("evaluate", step)
                        self._evaluate(job, average, saver, finished, totals)
                        thaw.set_modes()
                        window.begin()
                beat("data", finished)
                clock.go("data")
            beat("evaluate", self.steps)
            clock.go("other")
            self._evaluate(job, average, saver, self.steps, shown.totals())
            beat("end", self.steps)
            saver.settle(self.steps)

    def _recount(self, job: Job) -> None:
        """What trains has changed, and so has the bill."""
        if job.meter is not None:
            job.meter.costs.recount({name for name, _ in named_trainable(job.model)})

    def _evaluates(self, job: Job, finished: int) -> bool:
        return finished == self.steps or (job.eval_every > 0 and finished % job.eval_every == 0)

    def _evaluate(self, job: Job, average: Average, saver: Saver, step: int, totals: Mapping[str, Counts]) -> None:
        """Scores the average, where there is one, and keeps the checkpoint of the best score; a signal ends the run
        between two of its batches.
        """
        try:
            with saver.clock.span("evaluation"), average.in_place_of_weights(job.model):
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
        how = "" if job.checkpoint["resume"] == "auto" else "with checkpoint.resume=auto "
        kept = (
            f"its checkpoint is saved, the same command {how}goes on from there" if saver.saved == step else "not saved"
        )
        raise Preempted(f"{job.preemption.name} after step {step}: {kept}")


def _pictured(batches: Sequence[Batch], device: torch.device) -> bool:
    """Whether any rank has a picture in this step."""
    return sum_counts([sum(batch.pixels is not None for batch in batches)], device)[0] > 0
