"""One rank that trains every option it is given for two steps, sharded: ``options.py SETTINGS.json``.

SETTINGS: runs (name -> a composed run), out (where each rank writes name -> loss and gradient norm of each step, or the
error).
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch

from beni.assemble import make_schedule
from beni.config.build import build
from beni.data.batch.loader import Steps
from beni.data.render.template import Renderer
from beni.distributed.environment import process_group, read_environment
from beni.distributed.fsdp import shard
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build as build_model
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward


def losses_of(run, environment) -> list[float]:
    train = run["train"]
    model = build_model(run)
    if environment.world > 1:
        shard(model, model.sharding_units(), environment, run["fsdp"] | {"mode": "full"}, "fp32")
    renderer, source = Renderer(load_tokenizer(run["llm"]), run["template"]), build(run["data"], train["seed"])
    schedule = make_schedule(run, source, renderer, model.viewer)
    steps = Steps(source, renderer, model.viewer, schedule, 1, "packed", environment.rank, environment.world)
    optimizer = build_optimizer(model, run["optim"])
    model.eval()  # dropout draws for each rank by itself; that it trains under sharding is what is asked here
    losses = []
    for step in range(2):
        loss = float(forward_backward(model, steps[step], step, environment.device, "fp32").loss)
        losses += [loss, clip_and_update(model, optimizer, 1e-2, 1.0)]
    return losses


def main(settings) -> None:
    torch.set_num_threads(1)
    environment = read_environment("cpu")
    seen: dict[str, object] = {}
    with process_group(environment):
        for name, run in settings["runs"].items():
            try:
                seen[name] = losses_of(run, environment)
            except Exception:
                seen[name] = traceback.format_exc()
                break  # the other rank waits for us in a collective: nothing more can be learned
    Path(f"{settings['out']}.{environment.rank}").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
