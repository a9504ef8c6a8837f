"""Boxes and windows against the same said in loops, and non-maximum suppression against torchvision's where it is."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from beni.errors import ConfigError
from beni.nn.boxes import (
    areas,
    best_windows,
    box_around,
    cell_windows,
    component,
    even_windows,
    overlaps,
    portions,
    require_sizes,
    suppressed,
    window_means,
)


def drawn(images, k, seed=0):
    """Random boxes with their scores."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(images, k, 2, 2, generator=generator, dtype=torch.float64).sort(2).values
    return corners.flatten(2), torch.rand(images, k, generator=generator, dtype=torch.float64)


def test_the_overlap_of_boxes_is_that_of_their_pixels():
    boxes = torch.tensor([[0, 0, 4, 6], [2, 3, 8, 8], [0, 0, 4, 6], [5, 0, 5, 8]]) / 8
    cells = torch.zeros(4, 8, 8, dtype=torch.bool)
    for i, (top, left, bottom, right) in enumerate((boxes * 8).int().tolist()):
        cells[i, top:bottom, left:right] = True
    for i, j in product(range(4), range(4)):
        union = (cells[i] | cells[j]).sum()
        expected = (cells[i] & cells[j]).sum() / union if union else 0.0
        assert float(overlaps(boxes, boxes)[i, j]) == pytest.approx(float(expected))
    assert areas(boxes).tolist() == [24 / 64, 30 / 64, 24 / 64, 0]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 1.0])
def test_suppression_takes_the_best_that_overlaps_with_none_before_it(overlap):
    boxes, scores = drawn(3, 20)
    places, clear = suppressed(boxes, scores, overlap, 20)
    for row in range(3):
        kept = []
        for place in scores[row].argsort(descending=True).tolist():
            if all(float(overlaps(boxes[row, [place]], boxes[row, [other]])) <= overlap for other in kept):
                kept.append(place)
        taken = places[row].tolist()
        assert taken[: len(kept)] == kept
        assert clear[row].tolist() == [True] * len(kept) + [False] * (20 - len(kept))
        rest = taken[len(kept) :]
        assert sorted(taken) == list(range(20))
        assert scores[row, rest].tolist() == sorted(scores[row, rest].tolist(), reverse=True)


def test_suppression_gives_as_many_as_were_asked_for_and_repeats_where_there_are_no_more():
    boxes, scores = drawn(2, 3)
    places, clear = suppressed(boxes, scores, 1.0, 5)
    assert places[:, 3:].equal(places[:, :2])
    assert clear.tolist() == [[True, True, True, False, False]] * 2


@pytest.mark.parametrize("overlap", [0.1, 0.4])
def test_suppression_is_that_of_torchvision(overlap):
    nms = pytest.importorskip("torchvision.ops").nms
    boxes, scores = drawn(1, 60)
    places, clear = suppressed(boxes, scores, overlap, 60)
    theirs = nms(boxes[0][:, [1, 0, 3, 2]], scores[0], overlap)
    assert places[0][clear[0]].tolist() == theirs.tolist()


def test_things_are_dealt_as_evenly_as_can_be():
    assert [portions(count, 3) for count in (7, 6, 2)] == [[3, 2, 2], [2, 2, 2], [1, 1, 0]]


@pytest.mark.parametrize("count", range(1, 13))
def test_even_windows_have_their_sizes_lie_inside_and_are_spread_alike_from_both_ends(count):
    windows = even_windows(count, (0.5, 0.25))
    big, small = windows[: -(-count // 2)], windows[-(-count // 2) :]
    for some, size in ((big, 0.5), (small, 0.25)):
        assert torch.allclose(some[:, 2:] - some[:, :2], torch.tensor(size, dtype=some.dtype))
        assert len({tuple(box) for box in some.tolist()}) == len(some)
    assert windows.min() >= 0
    assert windows.max() <= 1
    assert big[:, 1].min() + big[:, 3].max() == pytest.approx(1)


def test_four_windows_of_half_a_side_are_the_quarters():
    quarters = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]]
    assert even_windows(4, (0.5,)).tolist() == quarters
    assert even_windows(1, (0.5,)).tolist() == [[0.25, 0.25, 0.75, 0.75]]


@pytest.mark.parametrize("size", [0.01, 0.3, 0.5, 1.0])
def test_the_integral_image_gives_the_mean_of_every_window(size):
    heat = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (tall, wide), boxes = cell_windows((5, 7), size)
    means = window_means(heat, (tall, wide))
    assert means.shape[1] == len(boxes)
    for k, (top, left, bottom, right) in enumerate((boxes * torch.tensor([5, 7, 5, 7])).round().int().tolist()):
        assert (bottom - top, right - left) == (tall, wide)
        assert torch.allclose(means[:, k], heat[:, top:bottom, left:right].mean((1, 2)))


def test_the_means_of_fp32_maps_have_their_precision():
    heat = torch.full((1, 64, 64), 1e4)
    heat[0, 60:, 60:] += 1e-2
    exact = window_means(heat.double(), (4, 4))
    assert (window_means(heat, (4, 4)).double() - exact).abs().max() <= 1e-3


def test_the_best_windows_are_where_the_heat_is():
    heat = torch.zeros(2, 8, 8)
    heat[0, 0:2, 6:8], heat[0, 5:7, 1:3] = 3.0, 2.0
    heat[1, 3:5, 3:5] = 1.0
    boxes, means = best_windows(heat, 2, (0.25,), 0.3)
    assert boxes[0].tolist() == [[0, 6 / 8, 2 / 8, 1], [5 / 8, 1 / 8, 7 / 8, 3 / 8]]
    assert means[0].tolist() == [3.0, 2.0]
    assert boxes[1, 0].tolist() == [3 / 8, 3 / 8, 5 / 8, 5 / 8]


def test_each_size_of_windows_gets_its_portion():
    boxes, _ = best_windows(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), 5, (0.5, 0.25), 0.3)
    assert (boxes[0, :, 2] - boxes[0, :, 0]).tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_component_is_what_hangs_together_with_its_seed():
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 1, 0, 0]], dtype=torch.bool).expand(
        3, -1, -1
    )
    left, right, nothing = component(mask, torch.tensor([0, 4, 2]))
    assert left.int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert right.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert not nothing.any()
    assert box_around(torch.stack([left, right])).tolist() == [
        [0, 0, 2 / 4, pytest.approx(2 / 5)],
        [0, 2 / 5, 1, 1],
    ]
    assert box_around(nothing[None]).tolist() == [[0, 0, 1, 1]]


def test_a_component_that_winds_through_the_whole_grid_is_found():
    mask = torch.ones(1, 9, 9, dtype=torch.bool)
    mask[0, 1::4, :-1] = False
    mask[0, 3::4, 1:] = False
    assert component(mask, torch.tensor([0])).equal(mask)


def test_no_sizes_are_refused_with_the_key():
    with pytest.raises(ConfigError, match=r"views.sizes=\[\], expected sizes.*\n  fix: set views.sizes="):
        require_sizes([], "views.sizes")
