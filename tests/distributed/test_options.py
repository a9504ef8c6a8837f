"""Every option of the visual path trains in two processes that share its weights as it does in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from beni.errors import WeightsError
from support.options import needed, options
from support.processes import run_ranks
from support.small_model import small_run

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("options.py")
GROUPS = ("vision", "views", "selector", "resampler", "connector", "fusion", "llm")
NAMES = [(group, option) for group in GROUPS for option in options(group) if not needed(group, option)]
SETTINGS = ("train.batch_size=2", "data.text_share=0.4", "optim.lr=1e-2", "optim.warmup_ratio=0", "optim.eps=1e-3")
"""A rank's micro-batch is one sample: now and then one rank has no image while the other has one. At AdamW's usual eps
the sign of a gradient of 1e-9 moves a weight as far as any other does.
"""
SECONDS = 500


@pytest.fixture(scope="module")
def seen(tiny_once, tmp_path_factory):
    """Option -> its losses in one process, and on each of two ranks."""
    root = tmp_path_factory.mktemp("options")

    def tiny(*overrides):
        return tiny_once(*SETTINGS, *overrides)

    runs = {}
    for group, option in NAMES:
        try:
            runs[f"{group}={option}"] = small_run(tiny, group, option)
        except WeightsError:
            continue  # its package is not installed
    one = run_ranks(WORKER, {"runs": runs}, root / "one", 1, SECONDS)
    two = run_ranks(WORKER, {"runs": runs}, root / "two", 2, SECONDS)
    return {name: [rank.get(name) for rank in (*one, *two)] for name in runs}


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("name", [f"{group}={option}" for group, option in NAMES])
def test_two_ranks_train_the_option_as_one_process_does(seen, absent, name):
    if name not in seen:
        absent(f"{name} needs a package")
    one, first, second = seen[name]
    assert isinstance(one, list), one
    assert isinstance(first, list), first
    assert first == second
    assert first[:2] == pytest.approx(one[:2], rel=1e-4)
    assert first[2:] == pytest.approx(one[2:], rel=1e-3)  # a step later, rounding has gone through an update
    assert one[0] != one[2]
