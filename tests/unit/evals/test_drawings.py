"""What is drawn over held-out pictures: the patches that are kept, pixel by pixel, and what stages leave themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from beni.data.images import decode
from beni.evals.drawings import DARK, artist_of, outlined
from beni.evals.gallery import draw_gallery, write_gallery
from beni.evals.subject import Asked
from beni.stage import Stage
from beni.types import ImageLayout, VisualTokens

FOUR = ("vision.architecture.patch_size=6",)
"""4x4 patches of 6 pixels."""
SIXTY = ("template.max_length=2048", "llm.architecture.max_position_embeddings=2048")


class Tomorrow(Stage):
    """A selector that knows nothing of drawings: every other place, from the last to the first, with gates."""

    def __init__(self, tokens):
        super().__init__()

    def spec(self, tokens):
        return replace(tokens, n=tokens.n // 2, grid=None, gated=True)

    def forward(self, tokens, context):
        n = tokens.x.shape[1]
        fewer = tokens.gather(torch.arange(n - 1, 0, -2).expand(len(tokens.x), -1))
        gates = torch.linspace(0.1, 1.0, n // 2).log().expand(len(tokens.x), -1).clone()
        gates[:, 0] = -torch.inf
        context.picture("score", 0, gates[0].exp(), fewer.yx[0])
        return replace(fewer, log_gate=gates)

    def init_weights(self):
        """Nothing to draw."""


def heard(model):
    """What the selector gives, call by call."""
    given = []
    model.selector.register_forward_hook(lambda stage, arguments, out: given.append(out))
    return given


def opacity(drawing, grid):
    """Opacity of a drawing, each cell of a grid in which it is the same at all pixels."""
    alpha = np.asarray(drawing.convert("RGBA"))[..., 3].astype(int)
    height, width = (side // cells for side, cells in zip(alpha.shape, grid, strict=True))
    assert (alpha.shape[0] % grid[0], alpha.shape[1] % grid[1]) == (0, 0)
    cells = alpha.reshape(grid[0], height, grid[1], width)
    assert (cells == cells[:, :1, :, :1]).all()
    return cells[:, 0, :, 0]


def expected(tokens: VisualTokens, row, grid):
    """The openness of each cell, by the places of the tokens that are there."""
    cells = np.zeros(grid)
    gates = torch.zeros_like(tokens.size) if tokens.log_gate is None else tokens.log_gate
    for (y, x), real, gate in zip(tokens.yx[row].tolist(), tokens.mask[row].tolist(), gates[row].tolist(), strict=True):
        if real:
            cells[int(y * grid[0]), int(x * grid[1])] = np.exp(gate)
    return cells


def drawn(subject, sample, **options):
    (item,) = draw_gallery(subject, [sample], [], **options)
    return item


@pytest.mark.parametrize("positions", ["preserve", "compact"])
@pytest.mark.parametrize("selector", ["random", "uniform", "norm", "visionzip", "divprune"])
def test_darkened_patches_are_exactly_those_that_are_not_kept(subject_of, make_sample, selector, positions):
    subject = subject_of(*FOUR, f"selector={selector}", "selector.keep=5", f"selector.positions={positions}")
    given = heard(subject.model)
    item = drawn(subject, make_sample(3, [(48, 24), (24, 24)]))
    assert [line["name"] for line in item.line["drawings"]] == ["selector/kept"] * 2
    assert [line["note"] for line in item.line["drawings"]] == ["5 of 16 tokens"] * 2
    for i, overlay in enumerate(item.overlays.values()):
        kept = expected(given[-1], i, (4, 4))
        assert kept.sum() == 5
        assert (opacity(overlay, (4, 4)) == DARK * (1 - kept)).all()
        thumbnail = list(item.pictures.values())[i]
        assert overlay.width / overlay.height == thumbnail.width / thumbnail.height


def test_a_selector_that_nobody_knows_is_drawn_with_its_gates_and_its_own_pictures(subject_of, make_sample):
    subject = subject_of(*FOUR)
    subject.model.selector = Tomorrow(None)
    subject.model._row_specs.clear()
    given = heard(subject.model)
    item = drawn(subject, make_sample(0, [(24, 24)]))
    own, kept = item.line["drawings"]
    assert (own["name"], kept["name"]) == ("selector/score", "selector/kept")
    openness = expected(given[-1], 0, (4, 4))
    assert kept["note"] == f"8 of 16 tokens, open to {openness.sum() / 8:.0%} on average"
    assert (opacity(item.overlays[kept["file"]], (4, 4)) == np.round(DARK * (1 - openness))).all()
    assert own["note"] == "0 to 1"
    colours = np.asarray(item.overlays[own["file"]].convert("RGBA"))[..., :3].sum(-1)[24::48, 24::48]
    assert (np.argsort(colours[openness > 0]) == np.argsort(openness[openness > 0])).all()


def test_views_of_each_size_are_drawn_together_at_their_places(subject_of, make_sample):
    """A picture of two tiles side by side: those are one drawing, whose halves are the tiles."""
    subject = subject_of(*FOUR, *SIXTY, "views=anyres", "views.canvases=[[1,2]]", "selector=random", "selector.keep=5")
    given = heard(subject.model)
    item = drawn(subject, make_sample(0, [(24, 48)]))
    whole, tiles = item.line["drawings"]
    assert (whole["part"], whole["note"]) == ("whole picture", "5 of 16 tokens")
    assert (tiles["part"], tiles["note"]) == ("views of 100% x 50%", "10 of 32 tokens")
    base, *sides = (expected(given[-1], row, (4, 4)) for row in range(3))
    assert (opacity(item.overlays[whole["file"]], (4, 4)) == DARK * (1 - base)).all()
    assert (opacity(item.overlays[tiles["file"]], (4, 8)) == DARK * (1 - np.concatenate(sides, 1))).all()


def test_views_that_are_joined_are_drawn_in_patches_of_the_smallest(subject_of, make_sample):
    join = ("views=anyres", "views.canvases=[[2,2]]", "views.join=true", "views.newline=false")
    subject = subject_of(*FOUR, *SIXTY, *join, "selector=random", "selector.keep=40")
    given = heard(subject.model)
    item = drawn(subject, make_sample(0, [(48, 48)]))
    (line,) = item.line["drawings"]
    assert line["note"] == "40 of 80 tokens"
    left = given[-1].yx[0][given[-1].mask[0]].numpy()
    fine = left[(np.abs(left * 8 % 1 - 0.5) < 1e-3).all(1)]  # in the middle of a patch of a tile
    cells = opacity(item.overlays[line["file"]], (16, 16))
    assert len(fine) > 20
    assert all(
        (cells[2 * int(y * 8) : 2 * int(y * 8) + 2, 2 * int(x * 8) : 2 * int(x * 8) + 2] == 0).all() for y, x in fine
    )
    assert (cells == DARK).any()


def test_a_pooled_picture_is_kept_in_larger_cells(subject_of, make_sample):
    item = drawn(subject_of(*FOUR, "selector=pool", "selector.keep=4"), make_sample(0, [(24, 24)]))
    assert item.line["drawings"][0]["note"] == "4 of 16 tokens"
    assert (opacity(*item.overlays.values(), (1, 1)) == 0).all()


def test_without_a_selector_nothing_is_drawn(subject_of, make_sample):
    item = drawn(subject_of(), make_sample(0, [(24, 24)]))
    assert (item.line["drawings"], item.overlays) == ([], {})


def test_native_pictures_have_patches_of_their_own(subject_of, make_sample):
    subject = subject_of(
        *FOUR,
        *SIXTY,
        "views=native",
        "views.fill=false",
        "views.max_patches=32",
        "views.min_patches=4",
        "selector=random",
    )
    given = heard(subject.model)
    item = drawn(subject, make_sample(0, [(24, 48), (36, 24)]))
    for overlay, tokens, grid in zip(item.overlays.values(), given[-2:], ((4, 8), (6, 4)), strict=True):
        assert (opacity(overlay, grid) == DARK * (1 - expected(tokens, 0, grid))).all()


def test_drawings_are_small_files_beside_the_pictures(subject_of, make_sample, tmp_path):
    item = drawn(subject_of(*FOUR, "selector=random"), make_sample(0, [(400, 600)]))
    write_gallery(tmp_path, [item])
    (line,) = item.line["drawings"]
    with PILImage.open(tmp_path / line["file"]) as read:
        assert read.convert("RGBA").tobytes() == item.overlays[line["file"]].convert("RGBA").tobytes()
        assert read.size == (384, 256)
    assert (tmp_path / line["file"]).stat().st_size < 2000


def test_what_is_drawn_is_left_by_one_call_for_each_answer(subject_of, make_sample):
    subject = subject_of("selector=random")
    given = heard(subject.model)
    sample = make_sample(0, [(24, 24)])
    looked = subject.look(Asked(sample, [PILImage.new("RGB", (24, 24))]), [1], 0)
    assert len(given) == 1
    assert (looked.attention.images, looked.attention.shares, looked.attention.unread) == ({}, {}, "")
    assert artist_of(subject.model).patch == (12, 12)


def test_crops_are_outlined_where_they_were_cut(subject_of, make_sample):
    subject = subject_of(
        *FOUR, *SIXTY, "views=regions_saliency", "views.regions=2", "selector=random", "selector.keep=4"
    )
    item = drawn(subject, make_sample(0, [(48, 24)]))
    crops, *kept = item.line["drawings"]
    assert (crops["name"], crops["note"]) == ("views/crops", "2 crops")
    assert [(line["part"], line["note"]) for line in kept] == [
        ("whole picture", "4 of 16 tokens"),
        ("views of 50% x 50%", "8 of 32 tokens"),
    ]
    picture = make_sample(0, [(48, 24)]).images[0]
    boxes = subject.viewer(decode(picture)).layout.boxes[1:]
    ink = np.asarray(item.overlays[crops["file"]].convert("RGBA"))[..., 3] > 0
    height, width = ink.shape
    expected = np.zeros_like(ink)
    for top, left, bottom, right in boxes:
        y, x = slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))
        expected[y, x][:2], expected[y, x][-2:] = True, True
        expected[y, x][:, :2], expected[y, x][:, -2:] = True, True
    assert (ink == expected).all()


def test_views_that_lie_as_their_numbers_say_have_no_outlines():
    assert outlined(ImageLayout((8, 8), ((4, 4), (4, 4))), (8, 8)) is None
