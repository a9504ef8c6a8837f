"""One rank of a step with auxiliary losses: ``auxiliary_rank.py SETTINGS.json`` (run, mode of sharding, out)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from beni.assemble import make_schedule
from beni.config.build import build as build_part
from beni.data.batch.loader import Steps
from beni.data.render.template import Renderer
from beni.distributed.environment import process_group, read_environment
from beni.distributed.fsdp import shard
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.training.step import forward_backward


def main(settings) -> None:
    torch.set_num_threads(1)
    os.environ["BENI_TRUSTED"] = "support."
    sys.path.insert(0, str(Path(__file__).parents[1]))
    run, environment = settings["run"], read_environment("cpu")
    with process_group(environment):
        model = build(run).eval()
        shard(model, model.sharding_units(), environment, run["fsdp"] | {"mode": settings["mode"]}, "fp32")
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        source = build_part(run["data"], run["train"]["seed"])
        schedule = make_schedule(run, source, renderer, model.viewer)
        steps = Steps(source, renderer, model.viewer, schedule, 1, "packed", environment.rank, environment.world)
        result = forward_backward(model, steps[0], 0, environment.device, "fp32")
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        whole = {n: (g.full_tensor() if isinstance(g, DTensor) else g).tolist() for n, g in gradients.items()}
    said = {"loss": float(result.loss), "auxiliary": {n: float(v) for n, v in result.auxiliary.items()}}
    Path(f"{settings['out']}.{environment.rank}").write_text(json.dumps(said | {"gradients": whole}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
