"""What every views option must do: pictures to views, tokens of views to one row an image, as many as announced."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch
import yaml
from PIL import Image as PILImage

from beni.config.build import build_stage
from beni.model.mixed_sizes import encoded
from beni.nn.pixels import ImageTransform
from beni.nn.streams import torch_stream
from beni.paths import conf_dir
from beni.stage import Row, StageContext
from beni.types import ImageLayout, Prompt, TokenSpec, VisualTokens
from support.shrink import DETECTOR
from support.traced import follow, traced

GROUPS = ("views",)
DIM, PATCH, TILE = 6, 4, 16
TRANSFORM = ImageTransform(TILE, (0.5,) * 3, (0.5,) * 3)
SMALL = {
    "idefics2": {"shortest": 8, "longest": 32},
    "native": {"max_patches": 24},
    "dragonfly_v2": {"pool": 2},
    "idefics3": {"longest": 3},
    "internvl": {"max_tiles": 6},
    "regions_detector": DETECTOR,
}
"""Values that fit a tile of 4x4 patches."""
SIZES = [(20, 30), (40, 18), (16, 16), (3, 70), (64, 64)]


def options_of(option):
    """The option as it is, with its views joined and with newlines the other way, where it has these keys."""
    values = yaml.safe_load((conf_dir() / "views" / f"{option}.yaml").read_text()) | SMALL.get(option, {})
    return [
        values,
        *(values | {key: not values[key]} for key in ("join", "newline") if isinstance(values.get(key), bool)),
    ]


def built(values, seed=0):
    known = {"tokens": spec((TILE, TILE)), "dim_out": DIM, "tile": (TILE, TILE), "patches": (4, 4)}
    with torch_stream(seed, "views"):
        stage = build_stage(values, **known)
        stage.init_weights()
    return stage


@pytest.fixture
def variants(option):
    return [built(values) for values in options_of(option[1])]


def spec(size):
    grid = (size[0] // PATCH, size[1] // PATCH)
    return TokenSpec(n=grid[0] * grid[1], dim=DIM, grid=grid)


def encode(pixels, keys=(), keep=None):
    """An encoder of one patch a token: each sees its own pixels only."""
    blocks = pixels.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).mean((3, 5))  # (i, 3, rows, columns)
    x = torch.cat([blocks, blocks**2], 1)
    tokens = VisualTokens.dense(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
    if keep is None:
        return tokens
    return tokens.gather(torch.argsort((~keep).long(), dim=1, stable=True)[:, : int(keep[0].sum())])


def seen(views, pixels, context, through=encode):
    """Pixels of views as a model encodes them for its views."""
    return encoded(through, views, pixels, (), context)


def picture(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    return PILImage.fromarray(noise.numpy())


def rows(views, layout):
    return views.rows(layout, [spec(size) for size in layout.views])


def through(views, pictures):
    """Pictures through the stage as a model does it, its tokens passed on as they are."""
    layouts = tuple(views.settled(p, views.plan((p.height, p.width))) for p in pictures)
    split = [views.split(p, layout, TRANSFORM) for p, layout in zip(pictures, layouts, strict=True)]
    named = [(i, layout, len(rows(views, layout))) for i, layout in enumerate(layouts)]
    of = tuple(Row(i, i, f"{layout.size}/{view}", view) for i, layout, n in named for view in range(n))
    context = StageContext(layouts=layouts, rows=of)
    tokens = seen(views, list(chain(*split)), context)
    return views.finish(views(tokens, context), context), layouts


def counted(views, layout):
    return sum(part for part in views.markup(layout, rows(views, layout)) if isinstance(part, int))


def test_a_picture_becomes_the_views_that_were_planned(variants, option):
    for views in variants:
        for size in SIZES:
            layout = views.plan(size)
            made = views.split(picture(size), layout, TRANSFORM)
            assert tuple(tuple(view.shape) for view in made) == tuple((3, *view) for view in layout.views)
            assert layout.size == size
            assert views.plan(size) == layout


def test_pixels_say_no_more_than_where_views_lie_and_always_the_same(variants, option):
    for views in variants:
        for size in SIZES:
            planned, seen = views.plan(size), [views.settled(picture(size, seed), views.plan(size)) for seed in (0, 1)]
            assert seen == [planned, planned]  # but for their boxes
            assert views.settled(picture(size), planned).boxes == seen[0].boxes
            for layout in seen:
                assert all(0 <= a < b <= 1 for box in layout.boxes for a, b in zip(box, box[2:], strict=False))
                assert len(layout.boxes) in (0, len(layout.views))
                assert len(views.places(layout)) == len(rows(views, layout))


def test_its_extremes_are_layouts_of_pictures_of_their_size_and_no_picture_takes_more(variants, option):
    for views in variants:
        extremes = views.extremes()
        most = max(counted(views, layout) for layout in extremes)
        for size in SIZES:
            assert counted(views, views.plan(size)) <= most
        assert all(isinstance(layout, ImageLayout) for layout in extremes)


@torch.no_grad()
def test_an_image_becomes_one_row_with_as_many_tokens_as_stand_for_it(variants, option):
    for views in variants:
        out, layouts = through(views, [picture(size, i) for i, size in enumerate(SIZES)])
        assert out.mask.sum(1).tolist() == [counted(views, layout) for layout in layouts]
        assert len(out.x) == len(SIZES)
        assert bool((out.mask[:, 1:] <= out.mask[:, :-1]).all())
        assert all(part != "" for layout in layouts for part in views.markup(layout, rows(views, layout)))


@torch.no_grad()
def test_its_rows_have_the_specs_that_were_announced(variants, option):
    for views in variants:
        for size in SIZES:
            layout = views.plan(size)
            pixels = views.split(picture(size), layout, TRANSFORM)
            context = StageContext(layouts=(layout,))
            out = views(seen(views, pixels, context), context)
            announced = rows(views, layout)
            assert [row.n for row in announced] == out.mask.sum(1).tolist()
            assert {row.dim for row in announced} == {out.x.shape[2]}
            grids = [out.grid] * len(out.x) if not out.grids else list(out.grids)
            assert [row.grid for row in announced] == grids


@torch.no_grad()
def test_what_comes_along_with_its_rows_was_announced(variants, option):
    rich = {"gated": True, "deep": 2, "attn": True, "keys": 2}
    for views in variants:
        layout = views.plan(SIZES[0])
        context = StageContext(layouts=(layout,))
        pixels = views.split(picture(SIZES[0]), layout, TRANSFORM)
        out = views(seen(views, pixels, context, lambda *given: traced(encode(*given))), context)
        for row in views.rows(layout, [replace(spec(size), **rich) for size in layout.views]):
            assert row.gated == (out.log_gate is not None)
            assert row.attn == (out.attn is not None)
            assert row.deep == (0 if out.deep is None else out.deep.shape[2])
            assert row.keys == (0 if out.keys is None else out.keys.shape[2])


@torch.no_grad()
def test_an_image_does_not_see_the_others_of_its_batch(variants, option):
    for views in variants:
        pictures = [picture(size, i) for i, size in enumerate(SIZES)]
        before, _ = through(views, pictures)
        after, _ = through(views, [pictures[0], picture(SIZES[1], 99), *pictures[2:]])
        for i, (a, b) in enumerate(zip(before.x, after.x, strict=True)):
            assert a.equal(b) == (i != 1)


@torch.no_grad()
def test_the_order_of_the_batch_is_the_order_of_the_rows(variants, option):
    for views in variants:
        pictures = [picture(size, i) for i, size in enumerate(SIZES)]
        ours, _ = through(views, pictures)
        theirs, _ = through(views, pictures[::-1])
        for a, b in zip(ours.x[ours.mask], theirs.select(torch.arange(len(SIZES)).flip(0)).x[ours.mask], strict=True):
            assert a.equal(b)


@torch.no_grad()
def test_a_new_field_comes_out_with_its_tokens_or_they_are_made_anew(variants, option):
    for views in variants:
        layouts = tuple(views.plan(size) for size in SIZES[:2])
        pixels = list(chain(*(views.split(picture(layout.size), layout, TRANSFORM) for layout in layouts)))
        context = StageContext(layouts=layouts)
        tokens = seen(views, pixels, context)
        first, last = (partial(half, context=context) for half in (views, views.finish))
        assert follow(first, traced(tokens)) == (option[1] != "s2")
        assert follow(last, traced(first(tokens), written=("deep",) if option[1] == "deepstack" else ()))


def test_a_gradient_reaches_its_parameters_and_the_pixels(variants, option):
    for views in variants:
        layout = views.plan(SIZES[0])
        pixels = [view.requires_grad_() for view in views.split(picture(SIZES[0]), layout, TRANSFORM)]
        asked = torch.randn(len(rows(views, layout)), 2, DIM, generator=torch.Generator().manual_seed(2))
        context = StageContext(layouts=(layout,), prompt=Prompt(asked, torch.ones_like(asked[..., 0]).bool()))
        out = views.finish(views(seen(views, pixels, context), context), context)
        made = out.x if out.deep is None else torch.cat([out.x, out.deep], -1)
        weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
        gates = 0.0 if out.log_gate is None else (out.log_gate * weights[..., 0]).sum()
        ((made * weights).sum() + gates).backward()
        reached = sum(view.grad is not None and bool(view.grad.any()) for view in pixels)
        assert reached == len(pixels) or option[1] == "dragonfly_v1"  # which chooses among its views
        for name, parameter in views.named_parameters():
            own = parameter.grad if name != "view" else parameter.grad[: len(layout.views)]
            assert own.abs().max() > 0, name


def test_one_stream_gives_one_stage_and_all_that_it_saves_is_parameters(option):
    for values in options_of(option[1]):
        ours, again = built(values), built(values)
        assert all(t.equal(again.state_dict()[name]) for name, t in ours.state_dict().items())
        assert set(ours.state_dict()) == {name for name, _ in ours.named_parameters()}
        with torch.device("meta"):
            planned = built(values)
        assert {n: p.shape for n, p in planned.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}


def test_places_are_in_the_picture_where_views_are_joined(variants, option):
    for views in variants:
        if not getattr(views, "join", False):
            continue
        layout = views.plan((20, 30))
        pixels = views.split(picture((20, 30)), layout, TRANSFORM)
        context = StageContext(layouts=(layout,))
        out = views(seen(views, pixels, context), context)
        assert out.grid is None
        assert bool(((out.yx >= 0) & (out.yx <= 1)).all())
        assert len({tuple(place) for place in out.yx[0].tolist()}) > 16  # more than one view's
