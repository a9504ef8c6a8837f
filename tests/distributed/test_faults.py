"""A short fault campaign; the long one is ``python tests/distributed/faults.py --kills 50 --seed 0``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("faults.py")
KINDS = {1: ("kill_anywhere", "disk_full", "ask_term"), 2: ("kill_in_save", "truncate", "hang")}


@pytest.mark.parametrize("world", KINDS)
def test_a_run_that_is_broken_again_and_again_ends_as_if_untouched(world):
    options = ("--fork", "--seed", "3", "--kills", "3", "--world", str(world), "--kinds", *KINDS[world])
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        capture_output=True,
        text=True,
        timeout=540,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 faults in" in done.stdout
    assert "every loss as if untouched" in done.stdout
