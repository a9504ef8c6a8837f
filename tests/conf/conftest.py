"""Commands as a user types them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TORCH_FREE = """
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_module("beni.train", run_name="__main__", alter_sys=True)
finally:
    heavy = sorted({"torch", "transformers", "peft", "datasets"} & set(sys.modules))
    print("HEAVY", *heavy, file=sys.stderr)
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``command("resampler=none", ...)`` runs ``beni.train`` in an empty folder and returns what it said.

    The last line on stderr is HEAVY and the heavy packages that it imported. Without network, and with empty caches.
    """
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "BENI_"))}
        variables |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(
            [sys.executable, "-c", TORCH_FREE, *overrides],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def written(tmp_path: Path) -> Callable[[], list[str]]:
    """What the command left in the folder it was called in."""
    return lambda: sorted(str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*"))


@pytest.fixture
def heavy() -> Callable[[Any], list[str]]:
    """The heavy packages that a command imported."""
    return lambda done: done.stderr.splitlines()[-1].removeprefix("HEAVY").split()
