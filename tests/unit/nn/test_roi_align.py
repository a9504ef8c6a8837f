"""RoI-Align on boxes whose content is known, and against torchvision's where it is installed."""

from __future__ import annotations

import pytest
import torch

from beni.nn.roi_align import bin_centres, roi_align


def a_map(rows=6, columns=8, dim=5, images=2):
    return torch.randn(images, dim, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("block", [(0, 0), (2, 3), (3, 5)])
def test_a_box_around_a_block_of_cells_gives_these_cells(block):
    features, (top, left) = a_map(), block
    box = torch.tensor([top / 6, left / 8, (top + 3) / 6, (left + 3) / 8], dtype=torch.float64).expand(2, 1, 4)
    cells = features[:, :, top : top + 3, left : left + 3].flatten(2).transpose(1, 2)
    assert torch.allclose(roi_align(features, box, 3, 1)[:, 0], cells, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 4])
def test_bins_of_whole_cells_are_near_their_means_and_equal_where_every_cell_is_read_in_its_middle(samples):
    features = a_map(8, 8)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(2, 1, 4)
    means = torch.nn.functional.avg_pool2d(features, 8 // (8 // samples)).flatten(2).transpose(1, 2)
    assert torch.allclose(roi_align(features, whole, 8 // samples, samples)[:, 0], means, atol=1e-12)


def test_on_a_slope_a_bin_is_worth_its_centre():
    y, x = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(16.0) + 0.5, indexing="ij")
    slope = torch.stack([y / 8, x / 16])[None].double()
    boxes = torch.tensor([[[0.2, 0.1, 0.7, 0.5], [0.3, 0.3, 0.35, 0.9]]], dtype=torch.float64)
    assert torch.allclose(roi_align(slope, boxes, 3, 2), bin_centres(boxes, 3), atol=1e-12)


def test_outside_of_the_map_its_border_goes_on():
    features = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    edge = torch.tensor([[[0.0, 0.0, 1.0, 0.01], [0.0, 0.99, 1.0, 1.0]]])
    assert roi_align(features, edge, 1, 2)[0, :, 0, 0].tolist() == [0.0, 3.0]


def test_places_are_not_rounded_to_the_precision_of_the_features():
    boxes = torch.tensor([[[0.501, 0.501, 0.751, 0.751]]])
    features = (torch.arange(64.0) * 4).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    half = roi_align(features.bfloat16(), boxes.bfloat16().float(), 1, 4)
    exact = roi_align(features, boxes.bfloat16().float(), 1, 4)
    assert half.dtype == torch.bfloat16
    assert half[0, 0, 0, 0].float() == exact.bfloat16()[0, 0, 0, 0]


def test_a_box_without_an_area_is_one_point():
    features = a_map()
    point = torch.tensor([2.5 / 6, 3.5 / 8, 2.5 / 6, 3.5 / 8], dtype=torch.float64).expand(2, 1, 4)
    assert torch.allclose(roi_align(features, point, 2, 2)[:, 0, 0], features[:, :, 2, 3], atol=1e-12)


@pytest.mark.parametrize(("bins", "samples"), [(1, 1), (2, 3), (7, 2)])
def test_it_is_that_of_torchvision(bins, samples):
    theirs = pytest.importorskip("torchvision.ops").roi_align
    features, generator = a_map(images=1), torch.Generator().manual_seed(1)
    corners = torch.rand(9, 2, 2, generator=generator, dtype=torch.float64).sort(1).values.flatten(1)
    in_cells = corners[:, [1, 0, 3, 2]] * torch.tensor([8.0, 6.0, 8.0, 6.0], dtype=torch.float64)
    expected = theirs(features, [in_cells], bins, sampling_ratio=samples, aligned=True)
    ours = roi_align(features, corners[None], bins, samples)[0]
    assert torch.allclose(ours, expected.flatten(2).transpose(1, 2), atol=1e-10)
