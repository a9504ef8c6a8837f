"""``study.stop``: an arm that can no longer win is not trained, and nobody takes that for a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from beni.launch import job
from beni.launch.dropping import dropped
from beni.launch.states import states_of
from beni.launch.submit import settle_arm
from beni.runs.status import read_status

Make = Callable[..., Path]


def queued(make_run: Make, seeds: int, stop: float | None, better: float = 0.9) -> Path:
    """Two arms with some finished seeds, 0.4 and ``better`` on average, and a run of the worse one that waits."""
    values = {"study__stop": stop}
    for seed in range(seeds):
        off = (0.0, 0.025, -0.025)[seed % 3]
        make_run("none", seed, right=0.4 + off, **values)
        make_run("perceiver", seed, right=better - off, **values)
    return make_run("none", seeds, state="queued", **values)


def why(folder: Path) -> str:
    return str(dropped(folder, yaml.safe_load((folder / "config.yaml").read_text())))


def test_an_arm_that_is_far_behind_for_some_seeds_is_dropped(make_run: Make) -> None:
    assert why(queued(make_run, 6, 0.01)).startswith("resampler=perceiver is better by 0.5")


@pytest.mark.parametrize(("seeds", "stop", "better"), [(1, 0.01, 0.9), (6, None, 0.9), (6, 0.01, 0.4)])
def test_an_arm_goes_on_after_one_seed_without_the_option_and_where_it_is_as_good(
    make_run: Make, seeds: int, stop: float | None, better: float
) -> None:
    assert why(queued(make_run, seeds, stop, better)) == "None"


def test_a_seed_that_an_arm_has_not_ended_is_no_block(make_run: Make) -> None:
    folder = queued(make_run, 6, 0.01)
    for other in folder.parent.glob("*perceiver*-s1-*"):
        (other / "status.json").write_text(json.dumps({"state": "running", "step": 1}))
    assert why(folder) == "None"


def test_the_job_of_a_dropped_arm_ends_well_without_training_and_is_no_failure(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(make_run, 6, 0.01)
    monkeypatch.setattr(job, "_frozen_here", lambda _: yaml.safe_load((folder / "config.yaml").read_text()))
    assert job.main([str(folder)]) == 0
    status = read_status(folder)
    assert status["state"] == "dropped"
    assert "after 3 seeds" in status["error"]["message"]
    assert settle_arm(folder) is None
    [state] = states_of([folder])
    assert (state.state, state.over) == ("dropped", True)
    assert state.reason.startswith("resampler=perceiver is better")
