"""What a large set costs before training: finding its records, counting its lengths, packing an epoch.

A generated LLaVA file of conversations of two turns about one picture; no picture is opened, since the lengths of this
run do not depend on sizes. Everything after the first time comes from the cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from beni import compose
from beni.config.build import build
from beni.data.order.index import Index
from beni.data.order.lengths import RunLengths
from beni.data.order.schedule import Schedule
from beni.data.render.template import Renderer
from beni.llm.tokenizer import load_tokenizer
from beni.model.costing.table import propagate
from harness import write_result

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "left", "right", "top", "is", "there", "what", "the")


def write_set(path: Path, count: int) -> None:
    """One record a line of the array; texts of 8 to 120 words."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(n))) for n in np.clip(rng.lognormal(3.4, 0.6, 4096), 8, 120)]
    with path.open("w") as file:
        for i in range(count):
            said = texts[i % 4096]
            file.write("[" if i == 0 else ",\n")
            file.write(
                f'{{"id": "{i}", "image": "{i}.jpg", "conversations": [{{"from": "human", "value": "<image>\\nwhat is '
                f'there"}}, {{"from": "gpt", "value": "{said} {i}"}}]}}'
            )
        file.write("]")


class Watch:
    """The most memory that this process and its children have held, in GiB; sampled."""

    def __enter__(self) -> Watch:
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.5):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    held += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held / 1024**3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["BENI_CACHE"] = f"{name}/cache"
        path = Path(name) / "records.json"
        write_set(path, arguments.rows)
        run = compose(
            ["data=llava_pretrain", f"data.path={path}", "schedule=packs", "vision.architecture.patch_size=8"]
        )
        viewer = propagate(run).viewer
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        for again in ("first time", "from the cache"):
            with Watch() as watch:
                start = time.perf_counter()
                source = build(run["data"], 0)
                opened = time.perf_counter()
                index = Index(source, renderer, viewer.sized, arguments.workers)
                lengths = RunLengths(index, viewer, run["template"])
                lengths.loads(0)
                counted = time.perf_counter()
                schedule = Schedule(0, len(source), 8, run["schedule"], lengths)
                fill = schedule.fill()
                packed = time.perf_counter()
            rows.append(
                [
                    again,
                    f"{opened - start:.1f} s",
                    f"{counted - opened:.1f} s",
                    f"{packed - counted:.1f} s",
                    f"{watch.peak:.2f} GiB",
                ]
            )
        size = path.stat().st_size / 1024**2
    write_result(
        "index",
        f"From a JSON file of {arguments.rows} conversations ({size:.0f} MiB) to the packs of an epoch.",
        ["", "records found", "lengths counted", "epoch packed", "memory of all processes"],
        rows,
        [
            f"{arguments.workers} processes count lengths; fill of the packs {fill:.4f}: 64 pictures are reached "
            "before 8192 tokens",
            "memory is what the processes do not share, at its peak, the libraries included "
            f"(this process alone: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB)",
        ],
    )


if __name__ == "__main__":
    main()
