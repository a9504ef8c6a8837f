"""The two-stage walkthrough and README's way to an answer work as they stand: each block in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "walkthrough.md"
README = ROOT / "README.md"
SHORT = {r"train\.steps=\d+": "train.steps=3", r"data\.heldout=\d+": "data.heldout=8"}
BLOCKS = ("make_data.py", "align", "finetune", "compare", "ask.py", "torchrun")


def blocks(page: Path) -> dict[str, str]:
    """Title -> text of the titled blocks of a page, in their order."""
    return dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page.read_text(encoding="utf-8"), re.S))


def ran(name: str, text: str, folder: Path) -> str:
    """What a block prints; commands of a shell run with this interpreter."""
    if name.endswith(".py"):
        words = [sys.executable, "-c", text]
    else:
        for pattern, short in SHORT.items():
            text = re.sub(pattern, short, text)
        text = re.sub(r"^python ", f"{sys.executable} ", text, flags=re.M)
        text = re.sub(r"^torchrun ", f"{sys.executable} -m torch.distributed.run ", text, flags=re.M)
        words = ["bash", "-c", f"set -e\n{text}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder in which all blocks of the page have run, in their order, and what each has printed."""
    folder = tmp_path_factory.mktemp("walkthrough")
    return folder, {name: ran(name, text, folder) for name, text in blocks(PAGE).items()}


def test_the_page_shows_these_blocks():
    assert tuple(blocks(PAGE)) == BLOCKS


def test_the_second_stage_starts_from_the_first_and_trains_adapters(walked):
    _, said = walked
    for name in ("finetune", "torchrun"):
        assert re.search(
            r"train\.init_from: \d+ tensors loaded from \S+; newly initialised: llm \(\d+ adapter tensors\)",
            " ".join(said[name].split()),
        )


def test_the_two_ranks_are_compared(walked):
    folder, said = walked
    assert len(list(folder.glob("runs/finetune/*/report.html"))) == 2
    assert "CONFOUNDED" not in said["compare"]
    assert (folder / "runs" / "finetune" / "report.md").is_file()


def test_the_program_prints_an_answer(walked):
    assert walked[1]["ask.py"].strip()


def test_the_readme_leads_from_a_sweep_to_a_comparison_and_an_answer(tiny_values, tmp_path):
    text = README.read_text(encoding="utf-8")
    sweep, compare = (
        re.search(rf"^({command}[^#\n]*)", text, re.M)
        for command in ("python -m beni.train -m", "python -m beni.compare")
    )
    assert sweep
    assert compare
    given = {word.partition("=")[0] for word in sweep[1].split()}
    tiny = " ".join(value for value in tiny_values if value.partition("=")[0] not in {*given, "checkpoint.export"})
    assert "resampler=perceiver" in ran("sweep", f"{sweep[1].strip()} {tiny}\n{compare[1]}", tmp_path)
    assert ran("ask.py", blocks(README)["ask.py"], tmp_path).strip()
