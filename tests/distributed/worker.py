"""One rank of a distributed test: ``worker.py SETTINGS.json`` trains and writes what the rank saw.

SETTINGS: run (a composed run), folder (of its checkpoints), out (where each rank writes); spoilt, if given, is a step
(from 1) whose gradients are not finite, nor is its loss, and bad, if given, a step for which the last rank cannot draw
samples.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from beni.assemble import make_schedule
from beni.config.build import build
from beni.data.batch.loader import Steps
from beni.data.render.template import Renderer
from beni.distributed.environment import process_group, read_environment
from beni.distributed.fsdp import shard, tied
from beni.errors import DataError
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build as build_model
from beni.stage import StageContext
from beni.training import attempt
from beni.training.checkpoint.tensors import whole_on_main
from beni.training.loop import Trainer, TrainingJob
from beni.training.settings import TrainerSettings
from beni.types import ImageInputs


class Log:
    def __init__(self) -> None:
        self.losses, self.norms = {}, {}
        self.counts, self.faults = {}, []

    def train(self, step, values):
        self.losses[step], self.norms[step] = values["loss"], values["grad_norm"]

    def begin(self, step):
        self.began = step

    def data(self, step, values, faults):
        self.counts[step] = values
        self.faults += faults

    def saved(self, step, values):
        assert not values["checkpoint/failed"]

    def best(self, step, metric, value):
        self.kept = [step, metric, value]

    def notice(self, text):
        print(text, file=sys.stderr)


class Watched(Steps):
    """The steps, with a note of which micro-batches of this rank have an image."""

    def __getitem__(self, step):
        if [step + 1] == BAD and self.rank == self.world - 1:
            raise DataError("the picture x.png is bad\n  fix: remove it")
        batches = super().__getitem__(step)
        PICTURED.extend(batch.pixels is not None for batch in batches)
        return batches


PICTURED: list[bool] = []
BAD: list[int] = []
DTYPES: set[str] = set()


def note_dtypes(optimizer, *_) -> None:
    """Of the gradients that an update is made of."""
    DTYPES.update(str(p.grad.dtype) for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def spoil(number: int) -> None:
    """Makes that step's loss and gradients NaN, each time."""
    forward_backward = attempt.forward_backward

    def run(model, batches, step, *rest):
        result = forward_backward(model, batches, step, *rest)
        if step + 1 != number:
            return result
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(float("nan"))
        return replace(result, loss=torch.tensor(float("nan")))

    attempt.forward_backward = run


def main(settings) -> None:
    torch.set_num_threads(1)
    run = settings["run"]
    train = run["train"]
    environment = read_environment("cpu")
    register_optimizer_step_pre_hook(note_dtypes)
    BAD.extend([settings["bad"]] if "bad" in settings else [])
    if "spoilt" in settings:
        spoil(settings["spoilt"])
    with process_group(environment):
        model = build_model(run)
        shard(model, model.sharding_units(), environment, run["fsdp"], run["compute"]["precision"])
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        source = build(run["data"], train["seed"])
        viewer = model.viewer
        log = Log()

        def evaluate(step: int) -> dict[str, float]:
            """As evals/scores.py does: encode first, then predict."""
            model.eval()
            other = make_schedule(run | {"train": train | {"seed": 5, "batch_size": 4}}, source, renderer, viewer)
            batch = Steps(source, renderer, viewer, other, 1, run["compute"]["layout"])[0][0]
            with torch.no_grad():
                visual = model.encode_images(batch.pixels, StageContext(layouts=batch.layouts))
                log.evaluated = float(
                    model(**batch.model_inputs() | {"pixels": None, "images": ImageInputs(visual=visual)}).loss
                )
            return {"eval/loss": log.evaluated}

        schedule = make_schedule(run, source, renderer, viewer)
        job = TrainingJob(
            model=model,
            steps=Watched(
                source,
                renderer,
                viewer,
                schedule,
                train["accumulation"],
                run["compute"]["layout"],
                environment.rank,
                environment.world,
            ),
            environment=environment,
            checkpoints=Path(settings["folder"]),
            signature="same",
            evaluate=evaluate,
            log=log,
        )
        Trainer(TrainerSettings.of(run, run["compute"]["loss"])).fit(job)
        if run["checkpoint"]["export"]:
            whole = whole_on_main(model, environment.is_main)
            if environment.is_main:
                model.save_adapters(Path(settings["folder"]) / "adapters", whole)
        seen = vars(log) | {"pictured": PICTURED, "dtypes": sorted(DTYPES), "tied": tied(model)}
        Path(f"{settings['out']}.{environment.rank}").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
