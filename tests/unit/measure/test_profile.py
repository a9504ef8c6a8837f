"""What profiled steps went into: overlapping kernels count once, and the parts sum to the whole."""

from __future__ import annotations

import gzip
import json

import pytest

from beni.config.identity import signature
from beni.measure.profile import split, union
from beni.run import train


def test_a_union_joins_what_overlaps_or_touches():
    assert union([(4, 5), (0, 2), (1, 3), (3, 3.5)]) == [(0, 3.5), (4, 5)]
    assert union([]) == []


def test_a_kind_counts_what_none_before_it_covers():
    kernels = {"copy": [(0, 3)], "compute": [(1, 2), (1.5, 4)], "communication": [(3, 6), (8, 9)]}
    assert split(kernels, 12, 1.5) == pytest.approx(
        {"compute": 3, "communication": 3, "copy": 1, "data": 1.5, "idle": 3.5}
    )


def test_waiting_for_data_takes_only_what_no_kernel_does():
    assert split({"compute": [(0, 3)]}, 4, 9) == {"compute": 3, "communication": 0, "copy": 0, "data": 1, "idle": 0}


def test_a_run_profiles_the_steps_it_is_asked_for(tiny_run):
    values = ("train.steps=4", "train.accumulation=2")
    plain, run = tiny_run(*values), tiny_run(*values, "train.profile=2:3")
    assert signature(plain) == signature(run)
    folder = train(run)
    shares = json.loads((folder / "profile" / "shares.json").read_text())
    assert (shares["first"], shares["last"]) == (2, 3)
    assert sum(shares["shares"].values()) == pytest.approx(1)
    assert shares["shares"]["compute"] > 0
    trace = json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))
    assert (
        sum(
            event.get("name") == "AdamW.step" or "Optimizer.step" in event.get("name", "")
            for event in trace["traceEvents"]
        )
        == 2
    )
    status = json.loads((folder / "status.json").read_text())
    assert status["profile/compute"] == pytest.approx(shares["shares"]["compute"])
    assert "of the profiled steps" in (folder / "report.html").read_text()
