from xml.etree import ElementTree

import pytest

from beni.analysis.plots import Curve, plot, smooth, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (10, 600, [200, 400, 600]),
        (0.31, 0.39, [0.32, 0.34, 0.36, 0.38]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_thinning_keeps_a_spike_and_the_order():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5_001] = (5_001.0, 99.0)
    kept = thin(points)
    assert (5_001.0, 99.0) in kept
    assert kept == sorted(kept)
    assert len(kept) <= 1_000


def test_smoothing_leaves_a_straight_line_alone_up_to_its_ends():
    line = [(float(x), 3.0 * x) for x in range(50)]
    assert [y for _, y in smooth(line)] == pytest.approx([y for _, y in line])


def test_smoothing_quietens_noise():
    noise = [(float(x), float(x % 2)) for x in range(100)]
    assert all(0.3 < y < 0.7 for _, y in smooth(noise)[10:-10])


def test_a_plot_is_well_formed_and_escapes_names():
    drawn = plot([Curve("<b>", [(1, 2.0), (2, 1.0)], "c1"), Curve("dots", [(2, 1.5)], "c2", "dots")], label='a "b"')
    ElementTree.fromstring(drawn)
    assert "&lt;b&gt;" in drawn


def test_without_points_there_is_no_plot():
    assert plot([Curve("nothing", [], "c1")], label="") == ""
