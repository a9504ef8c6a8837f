"""One rank that computes the gradients of some steps and updates nothing: ``gradients.py SETTINGS.json``.

SETTINGS: run (a composed run), steps, out (where each rank writes its losses; the gradients stand beside it as
``<out>.<rank>.npz``: for each parameter one row a step, of this rank's part where it is sharded). The schedule draws
samples, unless there are turns (for each micro-batch, whether each of two ranks has a picture in an even step) and
alternate (it is the other way round in odd steps); a single process then takes the samples of both ranks. A loss in
pieces takes so many label rows at a time as piece says.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from beni.assemble import make_schedule
from beni.config.build import build
from beni.data.batch.loader import Steps
from beni.data.render.template import Renderer
from beni.distributed.environment import process_group, read_environment
from beni.distributed.fsdp import shard
from beni.llm.tokenizer import load_tokenizer
from beni.model import loss
from beni.model.build import build as build_model
from beni.training.blocks import prepare_blocks
from beni.training.step import forward_backward
from beni.training.trainable import named_trainable, set_modes
from beni.types import Batch


def gradients(model) -> dict[str, np.ndarray]:
    """``<size of the whole>:<name>`` -> what this rank has of it."""
    parts = {}
    for name, p in named_trainable(model):
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        part = grad.to_local() if isinstance(grad, DTensor) else grad
        parts[f"{p.numel()}:{name}"] = part.flatten().numpy().copy()
    return parts


def drawn(settings, steps: Steps, step: int) -> list[Batch]:
    if "turns" not in settings:
        return steps[step]
    batches = []
    for turn, pictured in enumerate(settings["turns"]):
        wanted = [has != (settings["alternate"] and step % 2 == 1) for has in pictured]
        both = [kinds(steps.source)[has][(step + turn) % len(kinds(steps.source)[has])] for has in wanted]
        mine = both if steps.world == 1 else [both[steps.rank]]
        batches.append(steps.batch([(0, index) for index in mine]))
        assert steps.world == 1 or (batches[-1].pixels is not None) == wanted[steps.rank]
    return batches


@cache
def kinds(source) -> dict[bool, list[int]]:
    found: dict[bool, list[int]] = {True: [], False: []}
    for index in range(len(source)):
        found[bool(source.train(index, 0).images)].append(index)
    return found


def main(settings) -> None:
    torch.set_num_threads(1)
    run, train = settings["run"], settings["run"]["train"]
    environment = read_environment("cpu")
    with process_group(environment):
        model = build_model(run)
        loss.CHUNK_BYTES = 4 * model.llm.vocab_size * settings.get("piece", 1000)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("_gate"):  # zero at first, which would hide what it multiplies
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        prepare_blocks(model, run["compute"])
        shard(model, model.sharding_units(), environment, run["fsdp"], "fp32")
        set_modes(model, train["plan"])
        source, renderer = build(run["data"], train["seed"]), Renderer(load_tokenizer(run["llm"]), run["template"])
        schedule = make_schedule(run, source, renderer, model.viewer)
        layout, place = run["compute"]["layout"], (environment.rank, environment.world)
        steps = Steps(source, renderer, model.viewer, schedule, train["accumulation"], layout, *place)
        losses, rows = [], []
        for step in range(settings["steps"]):
            batches, how = drawn(settings, steps, step), run["compute"]["loss"]
            result = forward_backward(model, batches, step, environment.device, "fp32", how)
            losses.append(float(result.loss))
            rows.append(gradients(model))
            model.zero_grad(set_to_none=True)
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(f"{settings['out']}.{environment.rank}.npz", **columns)
    Path(f"{settings['out']}.{environment.rank}").write_text(json.dumps({"losses": losses}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
