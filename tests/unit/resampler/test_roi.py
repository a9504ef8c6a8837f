"""Tokens of regions: what lies in them, whose they are, and objects that were planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError, ConfigError
from beni.nn.boxes import even_windows
from beni.resampler.roi import coverage
from beni.stage import Row, Sink, StageContext
from beni.types import Prompt, TokenSpec, VisualTokens

GRID, DIM = (8, 8), 6
SPEC = TokenSpec(n=64, dim=DIM, grid=GRID, attn=True, keys=DIM)
OPTIONS = ("roi_grid", "roi_random", "roi_saliency", "roi_prompt", "roi_lost", "roi_tokencut")


@pytest.fixture
def tokens() -> VisualTokens:
    generator = torch.Generator().manual_seed(0)
    made = VisualTokens.dense(torch.randn(3, 64, DIM, generator=generator), GRID)
    attn, keys = torch.rand(3, 64, generator=generator), torch.randn(3, 64, DIM, generator=generator)
    return replace(made, attn=attn, keys=keys)


def planted(*objects: tuple[slice, slice]) -> VisualTokens:
    """A background, and objects that are like nothing but themselves, each a little different in every patch."""
    x = torch.zeros(1, *GRID, DIM, dtype=torch.float64)
    x[..., 0] = 1.0
    for number, place in enumerate(objects, 1):
        x[0][place] = 0.0
        x[0, place[0], place[1], number] = 1.0
        x[0, place[0], place[1], 0] = -0.2
    x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    flat = x.flatten(1, 2)
    return replace(VisualTokens.dense(flat, GRID), keys=flat)


def boxes_of(stage, tokens, context=StageContext()):
    return stage.propose(tokens, context).boxes


@pytest.mark.parametrize("option", OPTIONS)
def test_it_makes_whole_tokens_and_those_of_each_region_in_order(resampler, tokens, option):
    stage = resampler(option, SPEC, 8, regions=3, bins=2, whole=4, embed_boxes=False)
    out, boxes = stage(tokens, StageContext()), boxes_of(stage, tokens)
    assert out.x.shape == (3, 16 + 3 * 4, DIM)
    assert boxes.shape == (3, 3, 4)
    pooled = torch.nn.functional.avg_pool2d(tokens.x.transpose(1, 2).unflatten(2, GRID), 2)
    assert torch.allclose(out.x[:, :16], pooled.flatten(2).transpose(1, 2), atol=1e-5)
    centre = torch.stack([(boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2], -1)
    assert torch.allclose(out.yx[:, 16:].unflatten(1, (3, 4)).mean(2), centre.float(), atol=1e-6)
    bare = resampler(option, SPEC, 8, regions=3, bins=2, whole=0, embed_boxes=False)
    assert bare(tokens, StageContext()).x.allclose(out.x[:, 16:])


def test_a_region_on_whole_patches_is_these_patches(resampler, tokens):
    stage = resampler("roi_grid", SPEC, 8, regions=4, sizes=[0.5], bins=4, samples=1, whole=0, embed_boxes=False)
    x = tokens.x.unflatten(1, GRID)
    quarters = [x[:, top : top + 4, left : left + 4].flatten(1, 2) for top in (0, 4) for left in (0, 4)]
    assert torch.allclose(stage(tokens, StageContext()).x, torch.cat(quarters, 1), atol=1e-6)


def test_tokens_stand_for_patches_as_their_places_are_large(resampler, tokens):
    stage = resampler("roi_grid", SPEC, 8, regions=2, sizes=[0.5, 0.25], bins=1, whole=1)
    size = stage(tokens, StageContext()).size
    assert torch.allclose(size[0], 64 * torch.tensor([1.0, 0.25, 0.0625]) / 1.3125)


def test_where_a_box_lies_is_told_from_the_first_step_on_and_changes_nothing_before(resampler, tokens):
    plain, told = (resampler("roi_grid", SPEC, 8, regions=4, embed_boxes=embed) for embed in (False, True))
    assert told(tokens, StageContext()).x.equal(plain(tokens, StageContext()).x)
    torch.nn.init.normal_(told.box_embedding.fc2.weight)
    added = told(tokens, StageContext()).x - plain(tokens, StageContext()).x
    regions = added[0, 36:].unflatten(0, (4, 9))
    assert torch.allclose(regions, regions[:, :1].expand_as(regions), atol=1e-5)
    assert (regions[:, 0][:, None] - regions[:, 0]).abs().amax(-1).add(torch.eye(4)).min() > 1e-3


def test_random_windows_belong_to_the_sample_and_the_step(resampler, tokens):
    stage = resampler("roi_random", SPEC, 8, regions=4)
    rows = tuple(Row(i, i, f"sample {i}") for i in range(3))

    def drawn(order, step):
        chosen = torch.tensor(order)
        context = StageContext(step=step, rows=rows).of_rows(chosen)
        return boxes_of(stage, tokens.select(chosen), context)

    first = drawn([0, 1, 2], 0)
    assert first.equal(drawn([0, 1, 2], 5))
    assert first[[2, 0]].equal(drawn([2, 0], 0))
    stage.train()
    assert not first.equal(drawn([0, 1, 2], 5))
    assert drawn([0, 1, 2], 5)[1:2].equal(drawn([1], 5))
    other = resampler("roi_random", SPEC, 8, regions=4, seed=1)
    assert not boxes_of(other, tokens).equal(boxes_of(stage.eval(), tokens))
    assert ((first[..., 2:] - first[..., :2]) - torch.tensor([0.5, 0.5, 0.25, 0.25])[:, None]).abs().max() < 1e-6
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("heat", ["attention", "norm"])
def test_salient_windows_are_where_the_heat_is(resampler, tokens, heat):
    at = torch.zeros(GRID)
    at[1:3, 5:7] = 1.0
    tokens = replace(tokens, attn=at.flatten().expand(3, -1)) if heat == "attention" else tokens
    tokens = (
        tokens if heat == "attention" else tokens.with_features(torch.ones(3, 64, DIM) * (1 + at.flatten()[:, None]))
    )
    stage = resampler("roi_saliency", SPEC, 8, regions=1, sizes=[0.25], heat=heat)
    assert boxes_of(stage, tokens)[0, 0].tolist() == [1 / 8, 5 / 8, 3 / 8, 7 / 8]
    assert stage.reads == (frozenset({"attn"}) if heat == "attention" else frozenset())


def test_prompted_windows_go_by_what_is_asked_and_their_gates_by_the_mean_score(resampler, tokens):
    stage = resampler("roi_prompt", SPEC, 8, regions=2, sizes=[0.5], whole=1, gradient="gates", no_prompt="uniform")
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(3, 2, 8, generator=generator)
    asked = StageContext(prompt=Prompt(embeds, torch.tensor([[True, True], [True, False], [False, False]])))
    out, boxes = stage(tokens, asked), boxes_of(stage, tokens, asked)
    scores, _ = stage.scores(tokens, asked)
    for row in range(2):
        heat = scores[row].detach().unflatten(0, GRID)
        means = [heat[i : i + 4, j : j + 4].mean() for i in range(5) for j in range(5)]
        top, left, bottom, right = (boxes[row, 0] * 8).round().int().tolist()
        assert float(heat[top:bottom, left:right].mean()) == pytest.approx(float(max(means)), abs=1e-6)
        gate = torch.nn.functional.logsigmoid(5.0 * max(means))
        assert torch.allclose(out.log_gate[row, 1:10], gate.expand(9), atol=1e-6)
    assert boxes[2].allclose(even_windows(2, (0.5,)).float())  # nothing was asked about it
    assert out.log_gate[:, 0].eq(0).all()  # the whole view is open


def test_prompted_windows_learn_their_scores_through_gates_of_zero(resampler, tokens):
    stage = resampler("roi_prompt", SPEC, 8, regions=2, whole=0).train()
    out = stage(tokens, StageContext())
    assert out.log_gate.eq(0).all()
    out.log_gate.sum().backward()
    assert stage.scores.of_token.weight.grad.abs().max() > 0
    frozen = resampler("roi_prompt", SPEC, 8, regions=2, gradient="none")
    assert frozen(tokens, StageContext()).log_gate is None
    assert not frozen.spec(SPEC).gated


FIRST, SECOND = (slice(1, 4), slice(4, 7)), (slice(5, 8), slice(0, 2))


@pytest.mark.parametrize("option", ["roi_lost", "roi_tokencut"])
@pytest.mark.parametrize("of", ["features", "keys"])
def test_a_planted_object_is_found_and_then_the_other(resampler, option, of):
    own = {"seeds": 9} if option == "roi_lost" else {}
    stage = resampler(option, SPEC, 8, regions=2, of=of, **own)
    found = boxes_of(stage, planted(FIRST, SECOND))[0].tolist()
    places = [[y.start / 8, x.start / 8, y.stop / 8, x.stop / 8] for y, x in (FIRST, SECOND)]
    assert sorted(found) == sorted(places)
    assert stage.reads == (frozenset({"keys"}) if of == "keys" else frozenset())


@pytest.mark.parametrize("option", ["roi_lost", "roi_tokencut"])
def test_even_windows_stand_for_objects_that_are_not_there(resampler, option):
    """All patches are one object, and nothing is left to look for after it."""
    stage = resampler(option, SPEC, 8, regions=3)
    alike = replace(planted(), keys=torch.ones(1, 64, DIM, dtype=torch.float64))
    boxes = boxes_of(stage, alike)[0]
    if option == "roi_lost":
        assert boxes[0].tolist() == [0, 0, 1, 1]
        assert boxes[1:].equal(even_windows(3, (0.5,))[1:])
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_without_a_common_direction_lost_sees_what_is_apart(resampler):
    """All patches point the same way, as those of many encoders do: only when centred is the object apart."""
    tilted = planted(FIRST).keys + 3.0
    tokens = replace(planted(FIRST), keys=tilted)
    place = [y for pair in zip(*((s.start / 8, s.stop / 8) for s in FIRST), strict=True) for y in pair]
    plain, centred = (resampler("roi_lost", SPEC, 8, regions=1, seeds=9, centred=c) for c in (False, True))
    assert boxes_of(centred, tokens)[0, 0].tolist() == place
    assert boxes_of(plain, tokens)[0, 0].tolist() == [0, 0, 1, 1]


def test_its_boxes_are_drawn_over_the_picture(resampler, tokens):
    sink = Sink(wants_pictures=True)
    stage = resampler("roi_saliency", SPEC, 8, regions=2, sizes=[0.5])
    stage(tokens, StageContext(stage="resampler", sink=sink))
    assert set(sink.pictures) == {"resampler/heat", "resampler/regions"}
    for image, picture in sink.pictures["resampler/regions"]:
        top, left, bottom, right = boxes_of(stage, tokens)[image, 0].tolist()
        inside = torch.tensor([top < y < bottom and left < x < right for y, x in picture.yx.tolist()])
        assert (picture.values[inside] >= 0.5).all()
        assert inside.sum() == 16
    assert coverage(torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), (2, 2)).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("option", OPTIONS)
def test_what_it_cannot_work_on_is_refused(resampler, option):
    with pytest.raises(CompositionError, match=rf"^E-GRID .*resampler={option} needs a dense grid"):
        resampler(option, replace(SPEC, grid=None), 8)
    if option in ("roi_grid", "roi_random", "roi_saliency", "roi_prompt"):
        with pytest.raises(ConfigError, match=r"resampler.sizes=\[\]"):
            resampler(option, SPEC, 8, sizes=[])


def test_gates_before_prompted_regions_are_refused(resampler):
    stage = resampler("roi_prompt", SPEC, 8)
    with pytest.raises(CompositionError, match=r"^E-GATE .*resampler=roi_prompt"):
        stage.spec(replace(SPEC, gated=True))
