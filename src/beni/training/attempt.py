"""One attempt at the steps of a run, from its newest checkpoint on: what ``loop.py`` does, step by step.

Nothing on the way from one step to the next waits for a GPU, unless the guard asks for the numbers of every step: the
loss and the norm of the gradients stay where they are computed until a log line is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from beni.data.batch.ledger import Counts
from beni.distributed.collectives import sum_counts
from beni.errors import Preempted
from beni.measure.goodput import Goodput
from beni.nn.streams import derive
from beni.training.checkpoint.saver import Saver
from beni.training.ema import Average
from beni.training.job import TrainingJob
from beni.training.optim.rate import learning_rate
from beni.training.sample_counter import SampleCounter
from beni.training.settings import TrainerSettings
from beni.training.step import (
    StepResult,
    agree_on_batches,
    component_norms,
    forward_backward,
    gradient_norm,
    mean_metrics,
    unsharded,
    update,
)
from beni.training.thaw import Thaw
from beni.training.throughput import ThroughputWindow
from beni.training.trainable import TrainabilityCheck, named_trainable
from beni.types import Batch

LATEST_CHECK = 100
"""The step after which a run that had no picture until then is held to its plan."""


@dataclass(frozen=True)
class FinishedStep:
    """A step that has been taken.

    Attributes:
        rate: learning rate.
        norm: of all gradients, before they were clipped.
        by_component: norms of the components on steps that log; empty on others.
    """

    result: StepResult
    rate: float
    norm: Tensor
    by_component: Mapping[str, float]


class Attempt:
    """Steps from a checkpoint, or from the beginning, until the run ends or goes back.

    Attributes:
        done: steps that were finished before.
        thaw: what is frozen when; a context around the steps.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        job: TrainingJob,
        optimizer: torch.optim.Optimizer,
        average: Average,
        saver: Saver,
    ) -> None:
        self.settings, self.job, self.optimizer, self.average, self.saver = settings, job, optimizer, average, saver
        self.model, self.device, self.guard = job.model, job.environment.device, saver.guard
        self.done, before = saver.resume()
        self.guard.begin(before.get("guard", {}))
        job.log.begin(self.done)
        sources, ledger, main = job.steps.source.names, before.get("ledger", {}), job.environment.is_main
        limits = (settings.max_bad, self.device, settings.max_bad_records)
        self.counter = SampleCounter(sources, ledger, main, *limits)
        if main and not self.done:
            self.counter.faults += [{"step": 1, **fault} for fault in job.faults]
        self.clock = saver.clock = Goodput(self.device, before.get("goodput"), job.spent, job.started)
        if 0 < self.done < settings.steps and self._evaluates(
            self.done
        ):  # it may have ended between saving and scoring
            job.watchdog.beat("evaluate", self.done - 1)
            with job.preemption.deferred():
                self._evaluate(self.done, self.counter.totals())
        self.thaw = Thaw(self.model, settings.plan, settings.thaw, settings.steps, self.done)
        first = self.done == 0
        self.check = TrainabilityCheck.before_first_step(self.model, self.thaw.trains) if first else None
        self.window = ThroughputWindow(self.device, self.clock, self.model.feature_bank, job.meter)
        self._recount()
        if job.profile is not None:
            job.profile.reached(self.done, self.clock)
        job.watchdog.beat("data", self.done)
        self.clock.go("data")

    def agree(self, step: int, drawn: list[Batch] | Exception) -> list[Batch]:
        """The batches of a step, once all ranks have theirs; what has come due meanwhile is seen to first.

        Raises:
            Preempted: when a rank was asked to end; the run is saved then.
            Exception: what drawing raised on this rank or another.
        """
        self.clock.go("communication")
        self.job.watchdog.beat("step", step)
        wishes = [self.job.preemption.asked, self.saver.settled]
        batches, (stop, settled) = agree_on_batches(drawn, step, wishes, self.device)
        self.clock.go("other")
        if settled:
            self.saver.settle(step)
        if stop:
            self.guard.settle(self.model)
            saved = self.saver.saved == step
            self._stop(step, self.counter.totals() if saved else self.counter.report(step, self.job.log))
        self.counter.add(batches, step + 1)
        for notice in batches[0].notices:
            self.job.log.notice(notice)
        for component in self.thaw.due(step):
            self.job.log.notice(f"{component} trains from step {step + 1} on (train.thaw)")
            self.check = TrainabilityCheck.before_first_step(self.model, self.thaw.trains)
            self._recount()
        return batches

    def take(self, step: int, batches: Sequence[Batch]) -> FinishedStep:
        """One optimizer step: forward, backward, clip, update, average; the update is left out where the guard says so.

        Raises:
            Rewind: the run is to go back.
            DivergenceError: the run is to end.
            TrainabilityError: when what trains differs from the plan.
        """
        settings, model, finished = self.settings, self.model, step + 1
        self.clock.go("compute")
        torch.manual_seed(derive(settings.seed, "dropout", step, self.job.environment.rank))
        result = forward_backward(
            model, batches, step, self.device, settings.precision, settings.loss, self.clock, settings.steps
        )
        norms = gradient_norm(model)
        rate, norm = learning_rate(step, settings.steps, settings.optim), unsharded(norms)
        samples = [sample for batch in batches for sample in batch.ids]
        accepted, told = self.guard.accepts(model, finished, result.loss, norm, samples)
        if told:
            self.job.log.notice(told)
        if self._reports(finished):
            self.guard.settle(model)
        due = accepted and self._is_checked(finished, batches)
        if self.check is not None and due:
            for name in self.check.gradients(model):
                self.job.log.notice(f"{name} never receives a gradient in this run and is frozen")
        by_component = component_norms(model) if self._logs(finished) else {}
        if accepted:
            update(model, self.optimizer, rate, settings.optim["clip"], norms)
            self.average.update()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        self.clock.go("other")
        if self.check is not None and due:
            self.check.after_first_step(model)
            self.check = None
        self.window.step_done(batches, result.lengths)
        if self.job.profile is not None:
            self.job.profile.reached(finished, self.clock)
        return FinishedStep(result, rate, norm, by_component)

    def tell(self, finished: int, taken: FinishedStep) -> None:
        """Logs, saves and evaluates, where a step is one of those that do."""
        if self._logs(finished):
            result = taken.result
            values = {"loss": float(result.loss), "lr": taken.rate, "grad_norm": float(taken.norm)}
            values |= {"label_tokens": result.labels, **self.guard.metrics()}
            values |= {f"aux/{name}": float(value) for name, value in result.auxiliary.items()}
            values |= mean_metrics(result.metrics)
            self.job.log.train(finished, values | taken.by_component | self.window.line())
            self.window.begin()
        if self._reports(finished):
            # what a checkpoint leaves behind is told before it: a run that goes on there cannot
            totals = self.counter.report(finished, self.job.log)
            if self._saves(finished):
                self.job.watchdog.beat("save", finished - 1)
                self.saver.save(finished, totals)
            if self._evaluates(finished) and finished < self.settings.steps:
                self.job.watchdog.beat("evaluate", finished - 1)
                self._evaluate(finished, totals)
                self.thaw.set_modes()
                self.window.begin()
        self.job.watchdog.beat("data", finished)
        self.clock.go("data")

    def end(self) -> None:
        """Evaluates after the last step, and waits for its checkpoint."""
        self.job.watchdog.beat("evaluate", self.settings.steps)
        self.clock.go("other")
        self._evaluate(self.settings.steps, self.counter.totals())
        self.job.watchdog.beat("end", self.settings.steps)
        self.saver.settle(self.settings.steps)

    def _logs(self, finished: int) -> bool:
        return finished % self.settings.log_every == 0 or finished in (1, self.settings.steps)

    def _saves(self, finished: int) -> bool:
        every = self.settings.checkpoint["every"]
        return finished == self.settings.steps or bool(every and finished % every == 0)

    def _evaluates(self, finished: int) -> bool:
        return finished == self.settings.steps or (
            self.settings.eval_every > 0 and finished % self.settings.eval_every == 0
        )

    def _reports(self, finished: int) -> bool:
        return self._logs(finished) or self._saves(finished) or self._evaluates(finished)

    def _is_checked(self, finished: int, batches: Sequence[Batch]) -> bool:
        """Whether the plan is held against this step; a gradient reaches the vision encoder in a step with a picture,
        and the first need not have one.
        """
        if self.check is None:
            return False
        if finished in (self.settings.steps, LATEST_CHECK):
            return True
        return sum_counts([sum(batch.pixels is not None for batch in batches)], self.device)[0] > 0

    def _recount(self) -> None:
        """What trains has changed, and so has what a step costs."""
        if self.job.meter is not None:
            self.job.meter.costs.recount({name for name, _ in named_trainable(self.model)})

    def _evaluate(self, step: int, totals: Mapping[str, Counts]) -> None:
        """Scores the average, where there is one, and keeps the checkpoint of the best score; a signal ends the run
        between two of its batches.
        """
        try:
            with self.clock.span("evaluation"), self.average.in_place_of_weights(self.model):
                scores = self.job.evaluate(step)
        except Preempted:
            self._stop(step, totals)
        self.job.watchdog.beat()
        self.saver.keep_if_best(step, scores, totals, self.device)

    def _stop(self, step: int, totals: Mapping[str, Counts]) -> NoReturn:
        """Saves what is not saved yet, and ends the run.

        Raises:
            Preempted: always.
        """
        self.job.watchdog.beat("save")
        if self.saver.saved != step and step > 0:
            self.saver.save(step, totals)
        self.saver.settle(step)
        how = "" if self.settings.checkpoint["resume"] != "never" else "with checkpoint.resume=auto "
        saved = self.saver.saved == step
        kept = f"its checkpoint is saved, the same command {how}resumes from there" if saved else "not saved"
        raise Preempted(f"{self.job.preemption.name} after step {step}: {kept}")
