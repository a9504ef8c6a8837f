"""Training without a run folder: the loop itself, its log kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch


class Interrupted(Exception):
    """What stops a run in these tests."""


class MemoryLog:
    """Keeps what the loop says; raises ``Interrupted`` when a step has been taken, or calls ``at[step]``."""

    def __init__(self, stop: int | None = None) -> None:
        self.at = {}
        self.stop, self.losses, self.notices, self.began = stop, {}, [], None
        self.counts, self.faults, self.saves, self.bests = {}, [], [], []

    def train(self, step: int, values: Mapping[str, float]) -> None:
        self.losses[step] = values["loss"]
        if step == self.stop:
            raise Interrupted
        self.at.get(step, int)()

    def begin(self, step: int) -> None:
        self.began = step

    def data(self, step: int, values: Mapping[str, float], faults) -> None:
        self.counts[step] = values
        self.faults += faults

    def saved(self, step: int, values: Mapping[str, float]) -> None:
        self.saves.append((step, values["checkpoint/failed"]))

    def best(self, step: int, metric: str, value: float) -> None:
        self.bests.append((step, metric, value))

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def fit(steps_of):
    """fit(run, folder, stop=None) -> (model, log), stopped after ``stop`` steps when given; ``fit.log()`` is a log."""
    from beni.distributed.environment import Environment
    from beni.model.build import build
    from beni.training.loop import Trainer, TrainingJob
    from beni.training.settings import TrainerSettings

    def run_it(
        run,
        folder: Path,
        stop: int | None = None,
        model=None,
        signature="same",
        evaluate=lambda step: {},
        log=None,
        **fields,
    ):
        model = build(run) if model is None else model
        log = MemoryLog(stop) if log is None else log
        job = TrainingJob(
            model=model,
            steps=steps_of(run, model),
            environment=Environment(0, 1, 0, torch.device("cpu")),
            checkpoints=folder,
            signature=signature,
            evaluate=evaluate,
            log=log,
            **fields,
        )
        try:
            Trainer(TrainerSettings.of(run, run["compute"]["loss"])).fit(job)
        except Interrupted:
            assert log.stop is not None
        return model, log

    run_it.log = MemoryLog
    return run_it
