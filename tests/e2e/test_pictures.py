"""The report of a run shows what its selector keeps and what its answers look at."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beni.run import train
from support.families import LLMS

FOUR = ("vision.architecture.patch_size=6",)


def trained(run):
    train(run)
    (report,) = Path(run["paths"]["runs"]).glob("*/*/report.html")
    return report.parent, report.read_text()


def gallery(folder):
    return [json.loads(line) for line in (folder / "gallery.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_report_of_a_run_with_a_selector_holds_the_drawings(tiny_run, layout):
    folder, html = trained(
        tiny_run(*FOUR, "selector=random", "selector.keep=5", "eval.gallery=2", f"compute.layout={layout}")
    )
    rows = gallery(folder)
    assert [line["name"] for row in rows for line in row["drawings"]] == ["selector/kept", "attention"] * 2
    for row in rows:
        kept, heat = (folder / line["file"] for line in row["drawings"])
        with Image.open(kept) as drawing:
            alpha = np.asarray(drawing.convert("RGBA"))[..., 3]
        dark = alpha.reshape(4, 48, 4, 48).min((1, 3)) > 0
        assert dark.sum() == 11
        assert (np.kron(dark, np.ones((48, 48))) == (alpha > 0)).all()
        for file in (kept, heat):
            assert base64.b64encode(file.read_bytes()).decode() in html
        assert 0 < row["attention"] < 1
        assert f"attention on the image: {100 * row['attention']:.1f} %" in html


def test_without_a_selector_and_without_attention_nothing_is_drawn(tiny_run):
    folder, html = trained(tiny_run("eval.gallery=2", "eval.attention=0"))
    assert [(row["drawings"], row["attention"]) for row in gallery(folder)] == [([], None)] * 2
    assert len(list((folder / "gallery").iterdir())) <= 2
    assert not re.search(r"<figure><img|attention on the image|url\(", html)


def test_a_run_says_why_there_is_no_overlay(tiny_run):
    run = tiny_run("eval.gallery=1", "eval.attention=1")
    run["llm"] |= {"architecture": {"model_type": "gptj", **LLMS["gptj"], "n_embd": 32}, "attn_implementation": "eager"}
    folder, html = trained(run)
    assert "no attention overlay: gptj does not pass beni&#39;s attention on" in html
    assert gallery(folder)[0]["attention"] is None


def test_looking_changes_nothing_that_is_learned_or_scored(tiny_run, tmp_path):
    """Neither losses nor scores, and in evaluation the same answers."""
    told = []
    for layers in (0, 2):
        folder, _ = trained(
            tiny_run("eval.gallery=2", f"eval.attention={layers}", f"paths.runs={tmp_path / str(layers)}")
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        said = [row["prediction"] for row in gallery(folder)]
        told.append((losses, (folder / "scores.jsonl").read_text(), said, folder.name))
    assert told[0] == told[1]
