"""Both versions of Dragonfly against a plain reading of their code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beni.errors import CompositionError, ConfigError
from beni.stage import StageContext
from beni.types import ImageLayout, TokenSpec, VisualTokens
from beni.views.dragonfly_v1 import DragonflyV1
from beni.views.dragonfly_v2 import DragonflyV2

CLIP_336 = TokenSpec(n=577, dim=8)
CLIP_B32 = TokenSpec(n=50, dim=8)


def rows_of(tokens, count, seed=0):
    x = torch.randn(count, tokens.n, tokens.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ones = torch.ones(count, tokens.n)
    return VisualTokens.fresh(x, ones.bool(), torch.full((count, tokens.n, 2), 0.5), ones)


def v1(**values):
    return DragonflyV1(CLIP_B32, (224, 224), **{"top": 3, "regions": "spatial", "newline": "\n"} | values)


def v2(tokens=CLIP_336, patches=(24, 24), **values):
    return DragonflyV2(tokens, (336, 336), patches, **{"pool": 4, "newline": "\n", "join": False} | values)


def positions(markup):
    return sum(part if isinstance(part, int) else 1 for part in markup)


@pytest.mark.parametrize("size", [(600, 800), (1200, 300), (300, 1200), (50, 60)])
def test_the_second_version_takes_2098_positions_and_the_first_867(size):
    views = v2()
    assert positions(views.markup(views.plan(size), [CLIP_336] * 41)) == 2098
    views = v1(regions="interval")
    assert positions(views.markup(views.plan(size), [CLIP_B32] * 29)) == 867


def test_the_second_version_keeps_cls_and_pools_the_patches_of_all_tiles_but_the_first():
    views, rows = v2(), rows_of(CLIP_336, 41)
    layout = views.plan((600, 800))
    out = views.finish(rows, StageContext(layouts=(layout,))).x[0]
    pieces = [rows.x[0]]
    for tile in rows.x[1:]:
        pooled = F.avg_pool2d(tile[1:].T.reshape(1, 8, 24, 24), 4).reshape(8, 36).T
        pieces += [tile[:1], pooled]
    torch.testing.assert_close(out, torch.cat(pieces))


def test_pooling_behind_a_linear_connector_is_pooling_before_it():
    tokens = TokenSpec(n=16, dim=8)
    views, rows, linear = v2(tokens, (4, 4), pool=2), rows_of(tokens, 41), nn.Linear(8, 5).double()
    context = StageContext(layouts=(views.plan((600, 800)),))
    after = views.finish(rows.with_features(linear(rows.x)), context).x
    before = linear(views.finish(rows, context).x)
    torch.testing.assert_close(after, before)


def test_the_first_version_keeps_the_best_three_of_every_six_in_reading_order():
    views, rows = v1(regions="interval"), rows_of(CLIP_B32, 29)
    out = views.finish(rows, StageContext(layouts=(views.plan((600, 800)),))).x[0]
    kept = []
    for region in range(4):
        scores = rows.x[5:].mean(1) @ rows.x[1 + region].mean(0)
        inside = range(6 * region, 6 * region + 6)
        kept += sorted(inside, key=lambda i: float(scores[i]), reverse=True)[:3]
    expected = torch.cat([rows.x[:5], rows.x[5:][sorted(kept)]]).flatten(0, 1)
    assert out.equal(expected)


def test_by_default_those_compete_that_lie_in_the_middle_tile():
    views = v1()
    layout = ImageLayout((600, 800), ((224, 224),) * 29, (4, 6))
    assert views._middle(layout) == (2, 2)
    assert views._regions(layout)[0] == [0, 1, 2, 6, 7, 8]
    assert sorted(i for region in views._regions(layout) for i in region) == list(range(24))
    tall = ImageLayout((800, 200), ((224, 224),) * 29, (12, 2))
    assert views._regions(tall) == v1(regions="interval")._regions(tall)  # here the two agree


def test_no_gradient_reaches_the_choice():
    views, rows = v1(), rows_of(CLIP_B32, 29)
    x = rows.x.requires_grad_()
    views.finish(rows, StageContext(layouts=(views.plan((600, 800)),))).x.sum().backward()
    assert set(x.grad.unique().tolist()) == {0.0, 1.0}
    assert sum(bool(tile.any()) for tile in x.grad) == 17


def test_pooling_needs_every_patch_and_squares_that_divide():
    with pytest.raises(CompositionError, match=r"E-DIV .*views\.pool=5 .* 24x24"):
        v2(pool=5)
    views = v2()
    with pytest.raises(CompositionError, match=r"E-GRID .* 64 tokens come"):
        views.markup(views.plan((600, 800)), [TokenSpec(n=64, dim=8, space="llm")] * 41)
    with pytest.raises(ConfigError, match=r"views\.top=0"):
        v1(top=0)


@pytest.mark.parametrize(("change", "code"), [({"fixed": False, "mean": 144.0}, "E-GRID"), ({"gated": True}, "E-GATE")])
def test_pooling_would_bring_back_what_a_selector_takes_out_or_closes(change, code):
    views = v2()
    layout = views.plan((672, 672))
    with pytest.raises(CompositionError, match=rf"{code}.*\n  fix: set selector=none, or views\.join=true"):
        views.markup(layout, [replace(CLIP_336, **change)] * len(layout.views))
