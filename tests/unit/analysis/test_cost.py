"""What a run cost, from its status."""

from __future__ import annotations

import pytest

from beni.analysis import cost
from beni.analysis.render import render_report
from beni.runs.read import collect_run

TOLD = {
    "mfu": 0.412,
    "tflops_per_s": 325.5,
    "peak_tflops": 790.0,
    "flops/llm": 6e12,
    "flops/vision": 2e12,
    "flops/useful": 8e12,
    "flops/causal": 7e12,
    "flops/padding": 1e12,
    "flops/recomputed": 0.0,
    "goodput/data": 0.25,
    "goodput/compute": 0.75,
}


@pytest.fixture
def run(make_run):
    return collect_run(make_run(status=TOLD))


def test_flops_are_shares_of_the_useful_ones_and_padding_stands_beside_them(run):
    rows = {row["name"]: row["share"] for row in cost.flops(run)}
    assert rows == {"llm": 0.75, "vision": 0.25, "total": None, "padding (not included)": 0.125}


def test_utilisation_names_the_peak_that_it_is_a_share_of(run):
    assert cost.utilisation(run) == [
        ("FLOP/s", "326T"),
        ("MFU", "41.2 %"),
        ("peak FLOP/s of the device", "790T"),
    ]


def test_time_is_told_largest_part_first(run):
    assert cost.time(run) == [{"name": "compute", "share": 0.75}, {"name": "waiting for data", "share": 0.25}]


def test_the_report_has_it_and_does_without_it(make_run, run):
    page = render_report(run.folder).read_text()
    assert "<h2>Cost" in page
    assert "41.2 %" in page
    assert "waiting for data" in page
    assert "<h2>Cost" not in render_report(make_run(seed=1)).read_text()
