"""One rank that only draws data: ``drawing.py SETTINGS.json`` writes the sample ids of each step as a line.

SETTINGS: run (a composed run), world, first and last step, out (a file name; the rank is appended).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from beni.config.build import build
from beni.data.batch.loader import Steps, load
from beni.data.render.template import Renderer
from beni.llm.tokenizer import load_tokenizer
from beni.model.costing.table import propagate
from beni.run import make_schedule


def main(settings, rank) -> None:
    run = settings["run"]
    train = run["train"]
    source, renderer = build(run["data"], train["seed"]), Renderer(load_tokenizer(run["llm"]), run["template"])
    viewer = propagate(run).viewer
    schedule = make_schedule(run, source, renderer, viewer)
    steps = Steps(source, renderer, viewer, schedule, train["accumulation"], train["layout"], rank, settings["world"])
    with Path(f"{settings['out']}.{rank}").open("w") as file:
        for step, batches in enumerate(
            load(steps, settings["first"], settings["last"], train["workers"], pin=False), start=settings["first"]
        ):
            ids = [batch.ids for batch in batches]
            file.write(json.dumps({"step": step, "ids": ids, "order": batches[0].order, "pid": os.getpid()}) + "\n")
            file.flush()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(os.environ.get("RANK", "0")))
