"""What profiled steps went into: overlapping kernels count once, and the parts sum to the whole."""

from __future__ import annotations

import errno
import gzip
import json
import time

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from beni.measure.goodput import Goodput
from beni.measure.profile import Profile, kernels, split, union
from beni.run import train
from beni.runs.identity import signature

CPU = torch.device("cpu")


def test_a_union_joins_what_overlaps_or_touches():
    assert union([(4, 5), (0, 2), (1, 3), (3, 3.5)]) == [(0, 3.5), (4, 5)]
    assert union([]) == []


def test_a_kind_counts_what_none_before_it_covers():
    intervals = {
        "copy": [(0, 3)],
        "attention": [(1.5, 4)],
        "products": [(1, 2)],
        "communication": [(3, 6), (8, 9)],
    }
    assert split(intervals, 12, 1.5) == pytest.approx(
        {"products": 1, "attention": 2, "other": 0, "communication": 3, "copy": 1, "data": 1.5, "idle": 3.5}
    )


def test_waiting_for_data_takes_only_what_no_kernel_does():
    shares = split({"other": [(0, 3)]}, 4, 9)
    assert (shares.pop("other"), shares.pop("data"), sum(shares.values())) == (3, 1, 0)


def test_an_operator_counts_without_those_inside_it():
    x = torch.randn(2, 4, 64, 16, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        F.scaled_dot_product_attention(x, x, x).sum().backward()
        torch.randn(64, 64) @ torch.randn(64, 64)
    events = found.events()
    assert events is not None
    seconds = {kind: sum(end - begin for begin, end in some) for kind, some in kernels(events).items()}
    assert seconds["attention"] > 0
    assert seconds["products"] > 0
    assert sum(seconds.values()) <= sum(e.time_range.elapsed_us() for e in events if e.cpu_parent is None) / 1e6


def test_starting_the_profiler_is_no_part_of_a_step(tmp_path, monkeypatch):
    class Slow(profile):
        def start(self):
            time.sleep(0.5)
            super().start()

    monkeypatch.setattr("beni.measure.profile.profile", Slow)
    found, clock = Profile((1, 1), tmp_path, lambda line, shares: None), Goodput(CPU)
    found.reached(0, clock)
    torch.ones(2).add(1)
    found.reached(1, clock)
    assert json.loads((tmp_path / "shares.json").read_text())["seconds"] < 0.5


def test_a_full_disk_costs_the_trace_and_not_the_shares(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(profile, "export_chrome_trace", full)
    told: list[tuple[str, dict[str, float]]] = []
    found, clock = Profile((1, 1), tmp_path, lambda line, shares: told.append((line, dict(shares)))), Goodput(CPU)
    found.reached(0, clock)
    torch.ones(2).add(1)
    found.reached(1, clock)
    ((line, shares),) = told
    assert "trace.json.gz could not be written" in line
    assert "No space left" in line
    assert sum(shares.values()) == pytest.approx(1)


def test_a_run_that_goes_on_within_the_range_profiles_the_rest_and_beyond_it_says_so(tmp_path):
    told: list[str] = []
    for done, expected in ((5, "steps 2 to 4 are not profiled: the run resumed after step 5"), (2, "steps 3 to 4: ")):
        found, clock = Profile((2, 4), tmp_path, lambda line, shares: told.append(line)), Goodput(CPU)
        for finished in range(done, 7):
            found.reached(finished, clock)
            torch.ones(2).add(1)
        assert expected in told.pop()
        assert not told
    values = json.loads((tmp_path / "shares.json").read_text())
    assert (values["first"], values["last"]) == (3, 4)
    Profile((2, 4), tmp_path, lambda line, shares: told.append(line)).reached(5, clock)  # an earlier process did it
    assert not told


def test_a_run_profiles_the_steps_it_is_asked_for(tiny_run):
    values = ("train.steps=4", "train.accumulation=2")
    plain, run = tiny_run(*values), tiny_run(*values, "log.profile=2:3")
    assert signature(plain) == signature(run)
    folder = train(run)
    shares = json.loads((folder / "profile" / "shares.json").read_text())
    assert (shares["first"], shares["last"]) == (2, 3)
    assert sum(shares["shares"].values()) == pytest.approx(1)
    assert min(shares["shares"][kind] for kind in ("products", "attention", "other")) > 0
    trace = json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))
    assert (
        sum(
            event.get("name") == "AdamW.step" or "Optimizer.step" in event.get("name", "")
            for event in trace["traceEvents"]
        )
        == 2
    )
    status = json.loads((folder / "status.json").read_text())
    assert status["profile/products"] == pytest.approx(shares["shares"]["products"])
    assert "of the profiled steps" in (folder / "report.html").read_text()
