"""A short fault campaign; the long one is ``python tests/support/faults.py --kills 50 --seed 0``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support import faults

pytestmark = pytest.mark.slow

PROGRAM = Path(faults.__file__)
KINDS = {
    1: ("kill_anywhere", "disk_full", "truncate", "ask_usr2", "kill_at_epoch"),
    2: ("kill_in_save", "kill_in_accumulation", "hang", "ask_evaluating"),
}


@pytest.mark.parametrize("world", KINDS)
def test_a_run_that_is_broken_again_and_again_ends_as_if_untouched(world):
    options = (
        "--fork",
        "--seed",
        "3",
        "--kills",
        str(len(KINDS[world])),
        "--world",
        str(world),
        "--kinds",
        *KINDS[world],
    )
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        capture_output=True,
        text=True,
        timeout=540,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "{0} of {0} faults struck in".format(len(KINDS[world])) in done.stdout
    assert "every loss as if untouched" in done.stdout


def test_a_fault_that_never_happens_fails_the_campaign(tmp_path, monkeypatch):
    (tmp_path / "output").touch()
    life = faults.Life([], tmp_path / "output", tmp_path, [tmp_path / "struck"])
    monkeypatch.setitem(faults.FAULTS, "never", lambda *_: life)
    campaign = faults.Campaign(tmp_path, [], fork=True, expected={1: {}})
    with pytest.raises(AssertionError, match="never on 1 ranks: the fault never happened"):
        campaign.goes_on(tmp_path, "never", 1, random.Random(0))
    (tmp_path / "struck").touch()
    assert campaign.goes_on(tmp_path, "never", 1, random.Random(0))


@pytest.mark.parametrize(("missed", "code"), [(0, 0), (1, 0), (2, 1)])
def test_a_campaign_of_which_too_little_strikes_fails(monkeypatch, missed, code):
    def run(campaign, world, drawn):
        campaign.counts["any"] += len(drawn)
        campaign.missed = missed

    monkeypatch.setattr(faults.Campaign, "run", run)
    assert faults.main(["--kills", "10"]) == code
