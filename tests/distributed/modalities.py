"""One rank of a step whose micro-batches differ in whether they have a picture: ``modalities.py SETTINGS.json``.

SETTINGS: run (a composed run), steps, turns (for each micro-batch, whether each of two ranks has a picture in an even
step), alternate (it is the other way round in odd steps), out (where each rank writes its losses; the gradients of each
step stand beside it as ``<out>.<rank>.npz``: for each parameter one row a step, of this rank's part where it is
sharded). A single process takes the samples of both ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from beni.config.build import build
from beni.data.loader import Steps
from beni.data.template import Renderer
from beni.distributed.environment import process_group, read_environment
from beni.distributed.fsdp import shard
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build as build_model
from beni.run import make_schedule
from beni.training.step import forward_backward
from beni.training.trainable import named_trainable, set_modes


def gradients(model) -> dict[str, np.ndarray]:
    parts = {}
    for name, p in named_trainable(model):
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        sharded = isinstance(grad, DTensor)
        part = grad.to_local() if sharded else grad
        parts[f"{'part' if sharded else 'whole'}:{name}"] = part.flatten().numpy().copy()
    return parts


def main(settings) -> None:
    torch.set_num_threads(1)
    run, train = settings["run"], settings["run"]["train"]
    environment = read_environment("cpu")
    with process_group(environment):
        model = build_model(run)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide the gradient of its partner
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        shard(model, model.sharding_units(), environment, run["fsdp"], "fp32")
        set_modes(model, train["plan"])
        source, renderer = build(run["data"], train["seed"]), Renderer(load_tokenizer(run["llm"]), run["template"])
        schedule = make_schedule(run, source, renderer, model.viewer)
        steps = Steps(source, renderer, model.viewer, schedule, 1, "packed")
        kinds: dict[bool, list[int]] = {True: [], False: []}
        for index in range(len(source)):
            kinds[bool(source.train(index, 0).images)].append(index)
        losses, rows = [], []
        for step in range(settings["steps"]):
            batches = []
            for turn, pictured in enumerate(settings["turns"]):
                wanted = [has != (settings["alternate"] and step % 2 == 1) for has in pictured]
                both = [kinds[has][(step + turn) % len(kinds[has])] for has in wanted]
                mine = both if environment.world == 1 else [both[environment.rank]]
                batches.append(steps.batch([(0, index) for index in mine]))
                assert environment.world == 1 or (batches[-1].pixels is not None) == wanted[environment.rank]
            losses.append(forward_backward(model, batches, step, environment.device, "fp32")[0])
            rows.append(gradients(model))
            model.zero_grad(set_to_none=True)
    np.savez(
        f"{settings['out']}.{environment.rank}.npz", **{name: np.stack([row[name] for row in rows]) for name in rows[0]}
    )
    Path(f"{settings['out']}.{environment.rank}").write_text(json.dumps({"losses": losses}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
