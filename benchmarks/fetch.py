"""Pictures a second over a network: one by one, with a pool of threads, and with beni's fetcher; and what a run waits.

A server in a process of its own answers each request after 20 to 60 milliseconds. Every round asks for pictures that
no round has asked for, so no cache helps; the fetcher checks each by decoding it and writes it to its cache, which the
other two do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image as PILImage

from beni import compose, train
from beni.data.fetch.fetcher import Fetcher
from harness import interleaved, write_result

LATENCY = (0.02, 0.06)
"""Seconds before an answer."""
SIDE = 256


def serve(ready: Any) -> None:
    """Runs the server; sends its port."""
    from aiohttp import web

    bodies = []
    for i in range(16):
        noise = np.random.default_rng(i).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        file = BytesIO()
        PILImage.fromarray(noise).resize((SIDE, SIDE)).save(file, "JPEG", quality=85)
        bodies.append(file.getvalue())

    async def answer(request: Any) -> Any:
        await asyncio.sleep(random.uniform(*LATENCY))
        return web.Response(body=bodies[int(request.match_info["number"]) % 16], content_type="image/jpeg")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def read(url: str) -> bytes:
    """One request of the standard library."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def alternatives(base: str, pictures: int, cache: Path) -> dict[str, tuple[int, Callable[[], None]]]:
    """Name -> (pictures, how they are fetched)."""
    fresh = count()
    few = max(1, pictures // 16)  # one by one they would take minutes

    def urls(number: int) -> list[str]:
        return [f"{base}{next(fresh)}.jpg" for _ in range(number)]

    def one_by_one() -> None:
        for url in urls(few):
            read(url)

    def threads() -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(read, urls(pictures)))

    def fetched(concurrency: int) -> Callable[[], None]:
        def run() -> None:
            settings = compose([])["images"] | {"private_addresses": True, "cache": str(cache)}
            fetcher = Fetcher(settings | {"concurrency": concurrency, "per_host": concurrency})
            wanted = urls(pictures)
            fetcher.want(wanted)
            for url in wanted:
                fetcher.get(url)
            fetcher.close()

        return run

    return {
        "one by one": (few, one_by_one),
        "16 threads": (pictures, threads),
        "fetcher, 16 at once": (pictures, fetched(16)),
        "fetcher, 64 at once": (pictures, fetched(64)),
    }


def waiting(base: str, folder: Path, ahead: int, first: int) -> tuple[float, float]:
    """Share of wall time that a small run waits for data, and its samples a second."""
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "noise"}]
    records = [{"image": f"{base}{first + i}.jpg", "conversations": turns} for i in range(2000)]
    (folder / "records.json").write_text(json.dumps(records))
    run = compose(
        [
            *("data=llava_instruct", f"data.path={folder}/records.json", "data.heldout=1", "train.batch_size=16"),
            *("train.steps=60", "log.every=60", f"images.ahead={ahead}", "images.private_addresses=true"),
            *("images.per_host=64", f"images.cache={folder}/cache-{ahead}", f"paths.runs={folder}/runs-{ahead}"),
            *("checkpoint.export=false", "eval.gallery=0", "resampler=none", "compute.workers=1"),
        ]
    )
    path = train(run)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "train/data_wait" in row][-1]
    return last["train/data_wait"], last["train/samples_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    receives, sends = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(sends,), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{receives.recv()}/"
    with tempfile.TemporaryDirectory() as name:
        ways = alternatives(base, arguments.pictures, Path(name) / "cache")
        timed = interleaved({way: run for way, (_, run) in ways.items()}, arguments.rounds, warmup=0)
        waits = {ahead: waiting(base, Path(name), ahead, 10**7 + ahead * 10**6) for ahead in (0, 256)}
    server.terminate()
    rate = {way: ways[way][0] / timed[way].best for way in ways}
    middle = {way: ways[way][0] / median(timed[way].seconds) for way in ways}
    write_result(
        "fetch",
        f"JPEGs of {SIDE}x{SIDE} pixels a second from a server that answers after 20 to 60 ms.",
        ["how", "pictures/s", "median", "ratio"],
        [
            [
                way,
                f"{rate[way]:.0f} (+{timed[way].spread:.0%})",
                f"{middle[way]:.0f}",
                f"{rate[way] / rate['one by one']:.1f}x",
            ]
            for way in ways
        ],
        [
            "a small training run of 60 steps of 16 pictures waits for data "
            f"**{waits[256][0]:.0%}** of its time when it looks 256 pictures ahead ({waits[256][1]:.0f} samples/s), "
            f"and {waits[0][0]:.0%} when it does not ({waits[0][1]:.0f} samples/s)",
            f"{arguments.pictures} pictures, best of {arguments.rounds} interleaved rounds, in brackets how much "
            "slower the slowest was; server, fetcher and training share the cores",
        ],
        waiting={str(ahead): share for ahead, (share, _) in waits.items()},
    )


if __name__ == "__main__":
    main()
