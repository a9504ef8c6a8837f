"""Proof of value: the exact digits of short runs that cover the house, before and after a redesign.

    python benchmarks/digits.py --record digits.json            # on the tree that is to be changed
    python benchmarks/digits.py --against digits.json           # after each move; exit code 1 where a digit differs
    python benchmarks/digits.py --against digits.json --arms perceiver,lora

Of each run: the losses and gradient norms of every step and the held-out scores as they stand in ``metrics.jsonl``, the
hash of every component's first weights, the hash of the data order, and the ids of the samples in every micro-batch of
every rank. Each run is a process of its own with one thread. Digits belong to a machine and to versions of libraries:
a record names both, and is compared with a warning where they differ.

A key that has another name since a record was made is a change of this file and of no digit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

TINY = (
    *("vision.architecture.hidden_size=32", "vision.architecture.intermediate_size=64"),
    *("vision.architecture.num_hidden_layers=2", "vision.architecture.num_attention_heads=2"),
    *("vision.architecture.image_size=24", "vision.architecture.patch_size=6", "vision.image_size=24"),
    *("llm.architecture.hidden_size=32", "llm.architecture.intermediate_size=64"),
    *("llm.architecture.num_hidden_layers=2", "llm.architecture.num_attention_heads=4"),
    "llm.architecture.num_key_value_heads=2",
    *("data.image_size=24", "data.size=64", "data.heldout=12", "data.questions=2"),
)
"""Parts of a few thousand parameters."""

SHORT = (
    *("train.steps=6", "train.batch_size=8", "compute.threads=1", "compute.workers=0", "log.every=1"),
    *("compute.device=cpu", "checkpoint.export=false", "eval.gallery=0", "eval.examples=12", "eval.batch_size=4"),
    "eval.ablations=[]",
)

LORA = ("adapter=lora", "adapter.r=4", "train.plan.llm=lora", "train.plan.vision=frozen")
CLIP_AND_DINO = (
    *(
        f"vision.encoders.{name}.{key}={value}"
        for name in ("clip", "dinov2")
        for key, value in {
            "image_size": 24,
            "architecture.hidden_size": 32,
            "architecture.num_hidden_layers": 3,
            "architecture.num_attention_heads": 4,
            "architecture.image_size": 24,
            "architecture.patch_size": 6,
        }.items()
    ),
    "vision.encoders.clip.architecture.intermediate_size=64",
    "vision.encoders.dinov2.architecture.mlp_ratio=2",
)
LLM_ONLY = tuple(o for o in TINY if not o.startswith("vision."))
FILES_ONLY = tuple(o for o in TINY if not o.startswith("data."))
PERCEIVER = ("resampler=perceiver", "resampler.num_latents=6", "resampler.num_heads=4", "resampler.head_dim=8")

ARMS: dict[str, tuple[str, ...]] = {
    "default": (*SHORT, "data.heldout=24", "eval.examples=24"),
    "perceiver": (*TINY, *SHORT, *PERCEIVER, "resampler.depth=2", "resampler.attention_dropout=0.1"),
    "anyres": (*TINY, *SHORT, "views=anyres", "views.canvases=[[1,2],[2,1]]", "template.max_length=2048"),
    "anyres_joined": (*TINY, *SHORT, "views=anyres", "views.join=true", "views.newline=false", *PERCEIVER),
    "native_files": (*FILES_ONLY, *SHORT, "data=llava_instruct", "data.path=FILES/chat.json", "data.heldout=8",
                     "views=native", "views.max_patches=24", "eval.examples=8"),
    "prefix_attention": (*TINY, *SHORT, "fusion.image_attention=prefix", "fusion.out_norm=rmsnorm"),
    "image_attention_padded": (*TINY, *SHORT, "fusion.image_attention=image", "compute.layout=padded"),
    "match_rms": (*TINY, *SHORT, "fusion.match_text_rms=true", "connector=mlp2x_gelu", "connector.dropout=0.1"),
    "interleaved_encoders": (*LLM_ONLY, *SHORT, "vision=mof", "vision.weights=random", *CLIP_AND_DINO,
                             "train.plan.vision=full"),
    "sva": (*LLM_ONLY, *SHORT, "vision=mof", "vision.weights=random", "vision.combine=sources", *CLIP_AND_DINO,
            "resampler=sva", "resampler.side=2", "train.plan.vision=frozen"),
    "qformer_instruct": (*TINY, *SHORT, "resampler=qformer_instruct", "resampler.hidden_size=32", "resampler.depth=2",
                         "resampler.num_queries=6", "resampler.num_heads=4", "resampler.intermediate_size=64"),
    "nested_m3": (*TINY, *SHORT, "resampler=m3"),
    "levels_padded": (*TINY, *SHORT, "vision.levels=[0,1,2]", "resampler=tokenpacker", "compute.layout=padded"),
    "lora": (*TINY, *SHORT, *LORA, "adapter.dropout=0.1"),
    "hqq": (*TINY, *SHORT, *LORA, "quantization=hqq", "quantization.group_size=32"),
    "packs": (*TINY, *SHORT, "schedule=packs", "schedule.tokens=384", "train.batch_size=2", "data.pictures_share=0.2"),
    "by_length": (*TINY, *SHORT, "schedule=by_length", "compute.layout=padded", "train.accumulation=2"),
    "text_only": (*FILES_ONLY, *SHORT, "data=text", "data.path=FILES/book.txt", "data.piece=48", "template=plain",
                  "train.plan.vision=frozen", "train.plan.connector=frozen", "eval.examples=16"),
    "thaw_ema_rewind": (*TINY, *SHORT, "train.steps=24", "train.thaw.llm=0.2", "train.ema=0.9", "eval.every=7",
                        "train.guard.spike=rewind", "train.guard.window=8", "train.guard.threshold=1",
                        "checkpoint.every=3", "optim.lr=0.12", "optim.warmup_ratio=0"),
    "chunked_recomputed": (*TINY, *SHORT, "compute.loss=chunked", "compute.activation_checkpointing=full",
                           "connector.dropout=0.1", "train.accumulation=2"),
    "bf16_muon": (*TINY, *SHORT, "compute.precision=bf16", "optim=muon"),
    "feature_bank": (*TINY, *SHORT, "train.plan.vision=frozen", "compute.feature_bank=FILES/bank", "data.size=16"),
    "ddp_2": (*TINY, *SHORT, "fsdp=ddp", "train.accumulation=2"),
    "full_2": (*TINY, *SHORT, "fsdp=full", *PERCEIVER, "data.text_share=0.5"),
    "none_2": (*TINY, *SHORT, *LORA, "schedule=packs", "schedule.tokens=384", "train.batch_size=2"),
    "resumed": (*TINY, *SHORT, "train.steps=24", "checkpoint.every=5", "connector=mlp2x_gelu", "connector.dropout=0.1"),
}  # fmt: skip
"""Name -> overrides; ``FILES`` is a folder of pictures and texts that this program draws. ``_2`` is on two ranks."""

KEPT = ("train/loss", "train/grad_norm", "train/steps_left_out")

KILLED = {"resumed": 8}
"""Arms that are sent SIGKILL after this step, and started again."""


def world_of(arm: str) -> int:
    """Ranks of an arm."""
    return 2 if arm.endswith("_2") else 1


def draw_files(folder: Path) -> None:
    """Pictures of many shapes with conversations, and a text; the same on every machine."""
    from PIL import Image

    rng, records = random.Random(0), []
    words = [
        "a",
        "red",
        "round",
        "thing",
        "left",
        "of",
        "two",
        "green",
        "boxes",
        "above",
        "one",
        "small",
        "blue",
        "star",
    ]
    for i in range(40):
        size = rng.randrange(12, 60), rng.randrange(12, 60)
        picture = Image.frombytes("RGB", size, bytes(rng.randrange(256) for _ in range(3 * size[0] * size[1])))
        picture.save(folder / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\n" + " ".join(rng.choices(words, k=rng.randrange(2, 9)))}]
        turns.append({"from": "gpt", "value": " ".join(rng.choices(words, k=rng.randrange(1, 12)))})
        records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (folder / "chat.json").write_text(json.dumps(records))
    (folder / "book.txt").write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(400)))


def measure(arm: str, files: Path, runs: Path) -> dict[str, Any]:
    """Trains an arm in processes of its own and reads its digits."""
    overrides = [o.replace("FILES", str(files)) for o in ARMS[arm]] + [f"paths.runs={runs}"]
    if arm in KILLED:
        start(arm, overrides, runs, KILLED[arm])
    start(arm, overrides, runs)
    (folder,) = (path.parent for path in runs.glob("*/*/config.yaml"))
    identity = json.loads((folder / "identity.json").read_text())
    steps: dict[str, dict[str, str]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line, parse_float=str, parse_int=str)
        kept = {k: v for k, v in values.items() if k in KEPT or k.startswith("eval/")}
        steps.setdefault(values["step"], {}).update(kept)
    rows = (folder / "scores.jsonl").read_text().splitlines()
    return {
        "steps": steps,
        "scores": {hashlib.sha256(row.encode()).hexdigest()[:16]: json.loads(row)["id"] for row in rows},
        "init": identity["hashes"]["init"],
        "order": identity["hashes"]["data_order"],
        "batches": json.loads((runs / "batches.json").read_text()),
    }


def start(arm: str, overrides: list[str], runs: Path, killed_after: int | None = None) -> None:
    """One process a rank; all are killed once the step ``killed_after`` is logged.

    Raises:
        RuntimeError: with what the ranks said, when one fails.
    """
    world = world_of(arm)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(world):
        variables = {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (variables if world > 1 else {})
        command = [sys.executable, __file__, "--worker", str(runs), *overrides]
        with (runs.parent / f"{arm}.{rank}.said").open("w") as said:
            processes.append(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
    while killed_after is not None and processes[0].poll() is None:
        files = list(runs.glob("*/*/metrics.jsonl"))
        if files and f'{{"step": {killed_after},' in files[0].read_text():
            processes[0].send_signal(signal.SIGKILL)
        time.sleep(0.005)
    codes = [process.wait() for process in processes]
    if codes != [-signal.SIGKILL if killed_after is not None else 0] * world:
        said = "\n".join((runs.parent / f"{arm}.{rank}.said").read_text()[-3000:] for rank in range(world))
        raise RuntimeError(f"{arm}: exit codes {codes}\n{said}")


def work(runs: Path, overrides: list[str]) -> None:
    """One rank of one arm; the first also writes which samples every micro-batch has."""
    from beni.config.compose import compose
    from beni.run import train

    run = compose(overrides)
    train(run)
    if os.environ.get("RANK", "0") == "0":
        world = int(os.environ.get("WORLD_SIZE", "1"))
        (runs / "batches.json").write_text(json.dumps(batches(run, world)))


def batches(run: dict[str, Any], world: int) -> list[list[list[str]]]:
    """For each rank, for each step: the ids of each micro-batch's samples, joined."""
    from beni.assemble import assemble
    from beni.run import plan

    data = assemble(run, plan(run).viewer)
    ranks = [data.steps(rank=rank, world=world) for rank in range(world)]
    return [[[" ".join(batch.ids) for batch in rank[step]] for step in range(run["train"]["steps"])] for rank in ranks]


def difference(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two values differ, one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [line for key in before | now for line in difference(before.get(key), now.get(key), f"{path}/{key}")]
    return [] if before == now else [f"{path}: {json.dumps(before)[:90]} -> {json.dumps(now)[:90]}"]


def main() -> int:
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("--record", type=Path, help="write the digits to this file (arms that are in it stay)")
    command.add_argument("--against", type=Path, help="compare with this file")
    command.add_argument("--arms", help="some of them, by commas (all)")
    command.add_argument("--jobs", type=int, default=1, help="arms at once (%(default)s)")
    command.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = command.parse_args()
    if arguments.worker is not None:
        work(Path(arguments.worker[0]), arguments.worker[1:])
        return 0
    if (arguments.record is None) == (arguments.against is None):
        command.error("give --record FILE or --against FILE")
    names = arguments.arms.split(",") if arguments.arms else list(ARMS)
    if unknown := [name for name in names if name not in ARMS]:
        command.error(f"no arm {unknown[0]}; there are {', '.join(ARMS)}")
    from harness import machine

    known: dict[str, Any] = {}
    file = arguments.record or arguments.against
    if arguments.against is not None or file.exists():
        known = json.loads(file.read_text())
        if known["machine"] != machine():
            print(f"warning: recorded on {known['machine']}, this is {machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def digits(arm: str) -> dict[str, Any]:
            for part in (folder / arm, folder / arm / "files", folder / arm / "runs"):
                part.mkdir()
            draw_files(folder / arm / "files")
            return measure(arm, folder / arm / "files", folder / arm / "runs")

        with ThreadPoolExecutor(arguments.jobs) as pool:
            futures = {arm: pool.submit(digits, arm) for arm in names}
            different = [arm for arm, future in futures.items() if not told(arm, future, known, arguments)]
            measured = {arm: future.result() for arm, future in futures.items() if future.exception() is None}
    if arguments.record is not None:
        arms = known.get("arms", {}) | measured
        arguments.record.write_text(json.dumps({"machine": machine(), "arms": arms}, indent=1) + "\n")
    print(f"{len(names) - len(different)} of {len(names)} runs have the recorded digits" if arguments.against else "")
    return 1 if different else 0


def told(arm: str, future: Future, known: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """Prints a line on an arm; whether it ran, and has the recorded digits where some are to be compared with."""
    if (error := future.exception()) is not None:
        print(f"{'FAILED':8}{arm}\n{error}", flush=True)
        return False
    measured = future.result()
    last = list(measured["steps"].values())[-1]
    lines = []
    if arguments.against is not None:
        lines = difference(known["arms"].get(arm), measured)
    scores = ", ".join(f"{key} {value}" for key, value in sorted(last.items()) if key.count("/") == 1)
    print(f"{'DIFFERS' if lines else 'ok':8}{arm:24}{len(measured['steps'])} steps; {scores}", flush=True)
    for line in lines[:12]:
        print(f"        {line}")
    return not lines


if __name__ == "__main__":
    raise SystemExit(main())
