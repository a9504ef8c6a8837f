"""Fake run folders: everything a finished run writes, with scores made up from a seed."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from beni.runs.identity import signature

COLORS = ("red", "green", "blue")


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(resampler: str, seed: int, **values: Any) -> dict[str, Any]:
    part = {"_target_": f"beni.resampler.{resampler}.Resampler"}
    if resampler == "perceiver":
        part |= {"depth": 2, "num_latents": 16}
    run = {
        "vision": {"_target_": "beni.vision.hf.Encoder", "image_size": 64},
        "resampler": part,
        "llm": {"_target_": "beni.llm.hf.Llm", "layers": 4},
        "data": {"_target_": "beni.data.shapes.Shapes", "size": 64},
        "template": {"name": "chat", "system": None, "overlong": "error"},
        "schedule": {"unit": "sample", "tokens": 8192},
        "train": {
            "steps": 600,
            "batch_size": 64,
            "seed": seed,
            "init_from": None,
            "plan": {"vision": "full", "llm": "full"},
        },
        "log": {"every": 10},
        "tracker": {"_target_": "beni.tracker.jsonl.Jsonl"},
        "paths": {"runs": "runs"},
        "study": {"name": "zoo"},
        "choices": {
            "vision": "tiny_vit",
            "resampler": resampler,
            "llm": "tiny_llama",
            "tracker": "jsonl",
            "recipe": None,
        },
    }
    for key, value in values.items():
        section, _, name = key.partition("__")
        run[section][name] = value
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(resampler=, seed=, right=, blank=, state=, identity={}, status={}, **config values) -> run folder."""

    def make(
        resampler: str = "none",
        seed: int = 0,
        *,
        right: float = 0.9,
        blank: float = 0.3,
        state: str = "finished",
        examples: int = 40,
        study: str = "zoo",
        identity: dict[str, Any] | None = None,
        status: dict[str, Any] | None = None,
        **values: Any,
    ) -> Path:
        run = config(resampler, seed, **values)
        order = len(list((tmp_path / study).glob("*"))) if (tmp_path / study).exists() else 0
        name = f"tiny_vit-{resampler}-tiny_llama-s{seed}-{order:08x}"
        folder = tmp_path / study / name
        (folder / "gallery").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        known = {
            "signature": signature(run),
            "name": name,
            "created": f"2026-01-01T00:{order:02d}:00+00:00",
            "command": f"python -m beni.train resampler={resampler} train.seed={seed}",
            "git": {"commit": "c0ffee" * 6, "dirty": False},
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "data_fingerprint": "d47a" * 4,
            "template_hash": "7e3p" * 4,
            "hashes": {"data_order": f"0rder{seed}", "init": {"vision": f"v{seed}", "llm": f"l{seed}"}},
        }
        if resampler == "perceiver":
            known["hashes"]["init"]["resampler"] = f"p{seed}"
        (folder / "identity.json").write_text(json.dumps(known | (identity or {})))
        done = state == "finished"
        told = {
            "state": state,
            "step": 600 if done else 120,
            "steps": 600,
            "error": None,
            "updated": "2026-01-01T00:09:00+00:00",
            "seconds": 272.4,
            "samples_per_s": 141.2,
            "peak_memory_gib": 1.25,
            "parameters": {
                "vision": {"trained": 400_000, "frozen": 0},
                "llm": {"trained": 1_000_000, "frozen": 50_000},
            },
        }
        if done:
            told |= {"eval/accuracy": right, "eval/accuracy_blank": blank, "eval/chance": 0.34, "eval/loss": 0.31}
        (folder / "status.json").write_text(json.dumps(told | (status or {})))
        rng = random.Random(f"{resampler}{seed}")
        steps = range(10, told["step"] + 1, 10)
        lines(
            folder / "metrics.jsonl",
            [{"step": s, "train/loss": 0.3 + 2.2 * 0.99**s + rng.gauss(0, 0.05), "train/lr": 1e-3} for s in steps]
            + [
                {"step": s, "eval/accuracy": right * s / 600, "eval/accuracy_blank": blank, "eval/chance": 0.34}
                | {"eval/loss": 2 - 1.6 * s / 600, "eval/loss_blank": 2.1}
                for s in range(200, 601, 200)
                if done
            ],
        )
        if done:
            write_answers(folder, right, blank, examples, rng)
        (folder / "spec.json").write_text(
            json.dumps(
                {
                    "rows": [
                        {"stage": "vision", "option": "tiny_vit", "tokens": 64, "width": 128, "grid": [8, 8]}
                        | {"parameters": 400_000, "trained": 400_000, "flops": 5.1e7},
                        {"stage": "resampler", "option": resampler, "tokens": 16, "width": 128, "grid": None}
                        | {"parameters": 0, "trained": 0, "flops": 0.0},
                        {"stage": "llm", "option": "tiny_llama", "tokens": 80, "width": 192, "grid": None}
                        | {"parameters": 1_050_000, "trained": 1_000_000, "flops": 1.7e8},
                    ],
                    "visual_tokens": 16 if resampler == "perceiver" else 64,
                    "train_flops_per_sample": 6.6e8,
                    "prefill_flops": 2.2e8,
                }
            )
        )
        return folder

    return make


def write_answers(folder: Path, right: float, blank: float, examples: int, rng: random.Random) -> None:
    """scores.jsonl with exactly the asked-for shares of right answers, and a small gallery of drawn pictures."""
    rows: list[dict[str, Any]] = []
    for variant, share in (("true", right), ("blank", blank)):
        order = rng.sample(range(examples), examples)
        hits = set(order[: round(share * examples)])
        for i in range(examples):
            kind = ("color", "count")[i % 2]
            rows.append(
                {"step": 600, "id": f"e{i}", "kind": kind, "cluster": f"p{i // 4}", "variant": variant}
                | {"score": int(i in hits), "loss": 0.3, "prediction": "red", "expected": "blue", "chance": 0.34}
            )
    lines(folder / "scores.jsonl", rows)
    gallery = []
    for i in range(12):
        image = f"gallery/p{i // 2}.png"
        drawn = Image.new("RGB", (64, 64), "white")
        drawn.paste(COLORS[i // 2 % 3], (8 + 4 * (i // 2), 12, 36 + 4 * (i // 2), 40))
        drawn.save(folder / image)
        asked, expected = ("What colour is the square?", COLORS[i // 2 % 3]) if i % 2 == 0 else ("How many?", "1")
        gallery.append(
            {"id": f"g{i}", "kind": "color", "question": asked, "expected": expected, "images": [image]}
            | {"prediction": "2" if i == 3 else expected, "prediction_blank": "red", "correct": i != 3}
        )
    lines(folder / "gallery.jsonl", gallery)
