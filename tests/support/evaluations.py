"""What tests of evaluations ask: a run whose answers vary, and questions about ten pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from beni.run import train
from beni.trained import Trained

SHORT = "task.new_tokens=6"
HELD_OUT = 12
"""Held-out samples of the run."""


def vary(trained: Trained) -> None:
    """Gives a model weights so large that its answers vary."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)


def varied_run(make: Callable[..., dict[str, Any]], runs: Path) -> Path:
    """Trains a run of twelve held-out samples, and gives its saved model weights so large that its answers vary; its
    checkpoints are removed.

    Args:
        make: the fixture ``tiny_once``.
        runs: folder of its folder.
    """
    run = make("checkpoint.export=true", "llm.architecture.max_position_embeddings=512", f"data.heldout={HELD_OUT}")
    run["paths"]["runs"] = str(runs)
    folder = train(run)
    trained = Trained.load(folder)
    vary(trained)
    trained.model.save_pretrained(folder / "model")
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    return folder


def draw_pictures(root: Path) -> None:
    """Ten pictures, each of another size and colour."""
    for i in range(10):
        PILImage.new("RGB", (24 + 4 * i, 30), (20 * i, 250 - 20 * i, 50)).save(root / f"{i}.png")


def questions(root: Path, answer_of: Callable[[int], Any], **columns: Callable[[int], Any]) -> list[str]:
    """Words of a command that name a question about each of the pictures in ``root``.

    Args:
        answer_of: number of a picture -> its answer.
        columns: further columns by name: number of a picture -> value.
    """
    rows = [
        {"image": f"{i}.png", "question": f"what is it, number {i}?", "answer": answer_of(i)}
        | {name: of(i) for name, of in columns.items()}
        for i in range(10)
    ]
    path = root / f"rows-{len(list(root.iterdir()))}.json"
    path.write_text(json.dumps(rows))
    named = [f"data.columns.{name}={name}" for name in columns]
    return ["data=vqa", f"data.path={path}", f"data.images={root}", "data.heldout=2", "--split=all", *named]
