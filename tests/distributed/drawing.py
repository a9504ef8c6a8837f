"""One rank that only draws data: ``drawing.py SETTINGS.json`` writes the sample ids of each step as a line.

SETTINGS: run (a composed run), world, first and last step, out (a file name; the rank is appended).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from beni.assemble import assemble
from beni.data.batch.loader import load
from beni.model.costing.table import propagate


def main(settings, rank) -> None:
    run = settings["run"]
    steps = assemble(run, propagate(run).viewer).steps(rank=rank, world=settings["world"])
    with Path(f"{settings['out']}.{rank}").open("w") as file:
        drawn = load(steps, settings["first"], settings["last"], run["compute"]["workers"], pin=False)
        for step, batches in enumerate(drawn, start=settings["first"]):
            ids = [batch.ids for batch in batches]
            file.write(json.dumps({"step": step, "ids": ids, "order": batches[0].order, "pid": os.getpid()}) + "\n")
            file.flush()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(os.environ.get("RANK", "0")))
