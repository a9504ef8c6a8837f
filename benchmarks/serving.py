"""A served model under load: requests a second, seconds of an answer, and how many were answered in one batch.

Clients ask one question after another, about an image or none, half of them as a stream. What is right was asked
before, of each question by itself; an answer that differs is counted as wrong. With ``--kill`` a worker is killed in
the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image as PILImage

from beni import compose, train
from beni.serve.demo import HOST, Services, free_ports
from harness import write_result

QUESTIONS = 16
TOKENS = 16
WAIT = 120
SMALL = (
    *("train.steps=2", "eval.gallery=0", "eval.examples=1", "data.heldout=2", "compute.device=cpu"),
    *("compute.workers=0", "checkpoint.export=true", "compute.precision=fp32"),
)


@dataclass
class Found:
    """What came back.

    Attributes:
        seconds: of each answer, and until its first text where it was a stream.
        failed: status or error -> how often.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0


def question(number: int) -> dict[str, Any]:
    """A request; every second one has an image."""
    text = {"type": "text", "text": f"question {number}?"}
    noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    file = BytesIO()
    PILImage.fromarray(noise).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, text] if number % 2 else [text]
    # near zero: a model that has learned nothing gives all tokens almost the same probability, whatever it is asked
    how = {"temperature": 0.05, "seed": number, "max_tokens": TOKENS}
    return {"model": "model", "messages": [{"role": "user", "content": content}], **how}


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], stream: bool, found: Found) -> str | None:
    """The answer; None where there is none."""
    begun, first, said = time.perf_counter(), None, ""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body | {"stream": stream}) as answer:
            if answer.status != 200:
                found.failed[f"status {answer.status}"] += 1
                return None
            if stream:
                async for line in answer.content:
                    data = line.decode().removeprefix("data:").strip()
                    if not data or data == "[DONE]":
                        continue
                    event = json.loads(data)
                    if "error" in event:
                        found.failed["an error in a stream"] += 1
                        return None
                    said += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                    first = time.perf_counter() - begun if first is None and said else first
            else:
                said = (await answer.json())["choices"][0]["message"]["content"]
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        found.failed[type(error).__name__] += 1
        return None
    found.seconds.append(time.perf_counter() - begun)
    found.first += [] if first is None else [first]
    return said


async def client(
    session: aiohttp.ClientSession, url: str, number: int, end: float, right: list[str | None], found: Found
) -> None:
    turn = number
    while time.monotonic() < end:
        said = await ask(session, url, question(turn % QUESTIONS), turn // QUESTIONS % 2 == 0, found)
        found.wrong += said is not None and said != right[turn % QUESTIONS]
        turn += 1


async def metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Name of a metric -> its sum over labels."""
    async with session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    sums: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("beni") and (match := re.match(r"(\w+)(?:\{.*\})? (\S+)", line)):
            sums[match[1]] += float(match[2])
    return dict(sums)


async def load(
    urls: list[str], services: Services, options: argparse.Namespace
) -> tuple[Found, list[dict[str, float]]]:
    """Everything that came back, and the metrics of gateway and workers (none of one that was killed)."""
    gateway, *workers = urls
    found, limits = Found(), aiohttp.ClientTimeout(total=WAIT)
    async with aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        right = [await ask(session, gateway, question(number), False, Found()) for number in range(QUESTIONS)]
        before = [await metrics(session, url) for url in urls]
        end = time.monotonic() + options.seconds
        clients = [client(session, gateway, number, end, right, found) for number in range(options.clients)]
        running = asyncio.gather(*clients)
        if options.kill:
            await asyncio.sleep(options.seconds / 2)
            services.running[0][1].kill()
            workers = workers[1:]
            before = [before[0], *before[2:]]
        await running
        after = [await metrics(session, url) for url in (gateway, *workers)]
    return found, [
        {name: value - old.get(name, 0.0) for name, value in new.items()}
        for new, old in zip(after, before, strict=True)
    ]


def measure(run: Path, options: argparse.Namespace, folder: Path) -> tuple[Found, list[dict[str, float]]]:
    ports = free_ports([0] * (options.workers + 1))
    urls = [f"http://{HOST}:{port}" for port in ports]
    with (folder / "log").open("wb") as log:
        services = Services(log)
        try:
            for port, url in zip(ports[1:], urls[1:], strict=True):
                words = [str(run), "--name", "model", "--port", str(port), "--batch", str(options.batch)]
                services.start("worker", [*words, "--threads", "1"], f"{url}/healthz")
            words = ["--workers", ",".join(urls[1:]), "--port", str(ports[0]), "--rate", "0"]
            services.start("gateway", words, f"{urls[0]}/healthz")
            services.wait()
            return asyncio.run(load(urls, services, options))
        finally:
            services.end()


def share(seconds: list[float], at: float) -> float:
    return float(np.quantile(seconds, at)) if seconds else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder (default: the default model, untrained)")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--kill", action="store_true", help="kill one of several workers in the middle")
    parser.add_argument("--json", action="store_true", help="print numbers and write no result")
    options = parser.parse_args()
    if options.kill and options.workers < 2:
        parser.error("--kill needs --workers of at least 2")
    with tempfile.TemporaryDirectory() as name:
        run = options.run or train(compose([*SMALL, f"paths.runs={name}/runs"]))
        found, told = measure(run, options, Path(name))
    rows, batches = (
        sum(one.get(f"beni_worker_batch_rows_{kind}", 0.0) for one in told[1:]) for kind in ("sum", "count")
    )
    numbers = {
        "answers": len(found.seconds),
        "failed": dict(found.failed),
        "wrong": found.wrong,
        "answers_per_s": len(found.seconds) / options.seconds,
        "seconds": {str(at): share(found.seconds, at) for at in (0.5, 0.99)},
        "first_text": {str(at): share(found.first, at) for at in (0.5, 0.99)},
        "rows_per_batch": rows / batches if batches else 0.0,
        "taken_over": told[0].get("beni_gateway_retries_total", 0.0),
    }
    if options.json:
        print(json.dumps(numbers))
        return
    name = "serving_kill" if options.kill else "serving"
    write_result(
        name,
        f"{options.clients} clients for {options.seconds:g} s on loopback, {options.workers} worker(s), at most "
        f"{TOKENS} tokens.",
        ["", "median", "99 %"],
        [
            [what, *(f"{1000 * value:.0f} ms" for value in numbers[key].values())]
            for what, key in (("an answer", "seconds"), ("first text of a stream", "first_text"))
        ],
        [
            f"**{numbers['answers']}** answers, {numbers['answers_per_s']:.0f} a second; {sum(found.failed.values())} "
            f"failed, {found.wrong} wrong",
            f"{numbers['rows_per_batch']:.1f} conversations a batch, at most {options.batch}",
            *(
                [f"one worker was killed; {numbers['taken_over']:.0f} requests went on with another"]
                if options.kill
                else []
            ),
            "half of the requests have an image, half are streams; clients, gateway and workers share the cores",
        ],
        **numbers,
    )


if __name__ == "__main__":
    main()
