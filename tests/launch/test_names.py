"""What runs are called in the table, in jobs, and on the command line."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beni.errors import ResumeError
from beni.launch.__main__ import main
from beni.launch.names import Name, job_names, names_of, select
from beni.launch.states import State
from beni.launch.table import render
from beni.runs.read import runs_of

ARMS = (1, 4, 9)


@pytest.fixture
def study(make_run: Callable[..., Path]) -> Path:
    """Three arms whose folders differ in their hash alone, two seeds each."""
    made = [make_run("perceiver", seed, resampler__num_latents=latents) for seed in (1, 0) for latents in ARMS]
    return made[0].parent


def test_runs_are_called_by_arm_and_seed_arm_by_arm(study: Path) -> None:
    names = names_of(study)
    assert [str(name) for name in names] == [f"resampler.num_latents={n} s{seed}" for n in ARMS for seed in (0, 1)]
    assert names_of(names[2].folder)[0].folder == names[2].folder
    assert job_names([names[2].folder]) == {names[2].folder: "resampler.num_latents=4,s0"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(1, 0), (1, 1), (4, 0), (4, 1), (9, 0), (9, 1)]),
        ("s0", [(1, 0), (4, 0), (9, 0)]),
        ("num_latents=4", [(4, 0), (4, 1)]),
        ("s1 resampler.num_latents=9", [(9, 1)]),
        ("latents=9", [(9, 0), (9, 1)]),
        ("FOLDER", [(4, 1)]),
    ],
)
def test_runs_are_chosen_by_arm_seed_and_folder(study: Path, text: str, expected: list[tuple[int, int]]) -> None:
    names = names_of(study)
    text = names[3].folder.name if text == "FOLDER" else text
    assert [(int(name.arm[-1]), name.seed) for name in select(names, text)] == expected


def test_whole_words_come_before_parts_of_them() -> None:
    def name(arm: str, seed: int) -> Name:
        return Name(Path(f"run-s{seed}-abc"), arm, seed)

    names = [name("num_latents=1", 1), name("num_latents=16", 1), name("lr=1.5", 10), name("avg_pool", 2)]
    assert select(names, "num_latents=1") == names[:1]
    assert select(names, "s1") == names[:2]
    assert select(names, "lr=1") == names[2:3]
    assert select(names, "pool") == select(names, "avg") == names[3:]
    with pytest.raises(ResumeError, match=r"--run s7 means none of 4 runs\n  fix: .*num_latents=1, num_latents=16"):
        select(names, "s7")


def test_names_of_jobs_have_neither_spaces_nor_quotes() -> None:
    assert Name(Path("x"), 'a.b=["c d",2] e=1.5', None).job == "a.b=_c,d_,2_,e=1.5"


def on_a_terminal(columns: int, *command: str) -> list[str]:
    """The lines that a command prints at a terminal of so many columns."""
    outer, inner = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-m", *command], stdout=inner, stdin=inner, env=env) as process:
        os.close(inner)
        told = b""
        try:
            while piece := os.read(outer, 65536):
                told += piece
        except OSError:  # the other end is closed
            pass
    os.close(outer)
    assert process.returncode == 1
    plain = re.sub(r"\x1b\[[\d;]*m|\r", "", told.decode())
    return [line.rstrip() for line in plain.splitlines()]


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_is_as_wide_as_the_terminal(study: Path, columns: int, make_run: Callable[..., Path]) -> None:
    error = {"type": "DataError", "message": "/data/records.json, row 3: no image of that name there", "traceback": ""}
    folder = make_run("perceiver", 2, resampler__num_latents=9, state="failed", status={"error": error})
    lines = on_a_terminal(columns, "beni.launch", "status", str(study))
    assert max(map(len, lines[:8])) <= columns
    assert len(lines) == 1 + 7 + 1 + (columns == 80), "each run is one line"
    [row] = [line for line in lines if line.startswith("resampler.num_latents=9  2     failed ")]
    assert row.endswith(folder.name if columns == 200 else f"  {folder.name[-8:]}")
    if columns == 80:
        assert lines[-2] == f"resampler.num_latents=9 s2: {error['message']}"
    else:
        assert error["message"] in row


def test_what_many_runs_have_in_common_is_said_once() -> None:
    names = [Name(Path(f"a-s{seed}-00"), f"arm={'x' * 30}", seed) for seed in range(9)]
    states = [State(name.folder, "waiting", {}, job=f"12_{name.seed}", reason="Priority" * 4) for name in names]
    shown = ", ".join(str(name) for name in names[:3])
    assert render(names, states, 60)[1] == [f"{shown} and 6 more: {'Priority' * 4}"]


def test_a_study_of_200_arms_is_named_in_a_moment(study: Path) -> None:
    [first, *others] = runs_of(study)
    for one in others:
        shutil.rmtree(one)
    text = (first / "config.yaml").read_text()
    for arm in range(200):
        folder = first.with_name(f"tiny_vit-perceiver-s0-{arm:08x}")
        folder.mkdir()
        further = "".join(f"  option_{number}: {number}\n" for number in range(150))
        changed = text.replace("template:\n", f"template:\n{further}")
        (folder / "config.yaml").write_text(changed.replace("num_latents: 1\n", f"num_latents: {arm}\n"))
    shutil.rmtree(first)
    began = time.process_time()
    names = names_of(study)
    assert {name.arm for name in names} == {f"resampler.num_latents={arm}" for arm in range(200)}
    assert time.process_time() - began < 5


def test_a_run_that_nothing_matches_is_a_mistake(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study)]) == 0
    assert main(["logs", str(study), "--run", "nowhere"]) == 2
    assert "--run nowhere means none of 6 runs" in capsys.readouterr().err
