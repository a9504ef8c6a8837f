"""A console that fails ends no run: what cannot be printed is dropped, and the exit code is the one that was earned."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SHELL = "set -o pipefail; "


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", SHELL + line], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def status(folder: Path) -> dict:
    return json.loads(next(folder.glob("runs/*/*/status.json")).read_text())


@pytest.mark.parametrize("console", [">/dev/full 2>&1", "2>&1 | head -1", "2>&- >&-"], ids=["full", "pipe", "closed"])
def test_a_run_goes_on_without_its_console(console: str, tmp_path: Path):
    words = "data.size=64 data.heldout=8 train.steps=3 log.every=1 train.batch_size=4 compute.workers=0 eval.gallery=0"
    done = shell(f"{shlex.quote(sys.executable)} -m beni.train {words} checkpoint.export=false {console}", tmp_path)
    assert (done.returncode, status(tmp_path)["state"]) == (0, "finished"), done.stderr + done.stdout
    notices = next(tmp_path.glob("runs/*/*/notices.jsonl")).read_text()
    assert ("lost output" in notices) == (console != "2>&- >&-")


@pytest.mark.parametrize("console", ["2>/dev/full", "2>&1 | head -0"])
def test_an_error_keeps_its_exit_code(console: str, tmp_path: Path):
    assert shell(f"{shlex.quote(sys.executable)} -m beni.train train.steps=-1 {console}", tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["beni.train --cfg job", "beni.plan --json"])
def test_what_is_printed_as_a_result_is_an_error_where_the_disk_is_full_and_none_where_the_reader_has_seen_enough(
    command: str, tmp_path: Path
):
    python = shlex.quote(sys.executable)
    full = shell(f"{python} -m {command} >/dev/full", tmp_path)
    assert full.returncode == 2
    assert "ResourceError: standard output could not be written: No space left on device" in full.stderr
    seen = shell(f"{python} -m {command} | head -c 1", tmp_path)
    assert (seen.returncode, seen.stderr) == (0, "")
