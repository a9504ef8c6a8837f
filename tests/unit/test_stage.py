"""What a stage is told and what it leaves: noise that belongs to a sample, rows, sums of losses, pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from beni.model.context import rows_of
from beni.model.mixed_sizes import on_each_grid, on_each_size
from beni.model.pictures import kept
from beni.stage import PassThrough, Row, Sink, StageContext
from beni.types import ImageLayout, Prompt, VisualTokens

LAYOUT = ImageLayout((8, 8), ((8, 8), (8, 8)))
"""Of a picture that is seen in two views."""


def context(ids, owners, scale=0, **fields):
    """Of a micro-batch with those samples, whose images are all of two views."""
    layouts = (replace(LAYOUT, scale=scale),) * len(owners)
    rows = rows_of(layouts, owners, ids, lambda layout: len(layout.views))
    return StageContext(layouts=layouts, rows=rows, **{"seed": 1, "stage": "selector", "step": 3} | fields)


def drawn(made, name="gate", **options):
    return made.noise(name, torch.zeros(len(made.rows), 5), **options)


def by_sample(made, ids):
    """Sample id -> the noise of its rows."""
    noise = drawn(made)
    return {name: noise[[row.sample == i for row in made.rows]] for i, name in enumerate(ids)}


def test_the_noise_of_a_sample_does_not_depend_on_how_samples_are_dealt():
    """Two images of b: their rows are told apart by the order within the sample."""
    whole = by_sample(context(("a", "b", "c"), [0, 1, 1, 2]), "abc")
    parts = {}
    for ids, owners in ((("c",), [0]), (("b", "a"), [0, 0, 1])):  # other micro-batches, ranks, another order
        parts |= by_sample(context(ids, owners), ids)
    assert parts.keys() == whole.keys()
    for name, noise in whole.items():
        assert parts[name].equal(noise)
    assert len({tuple(row) for noise in whole.values() for row in noise.tolist()}) == 8


@pytest.mark.parametrize(
    "other",
    [
        context(("a",), [0], step=4),
        context(("a",), [0], seed=2),
        context(("a",), [0], stage="resampler"),
        context(("a",), [0], scale=1),
        context(("b",), [0]),
    ],
    ids=["step", "seed", "stage", "scale", "sample"],
)
def test_noise_differs_by_all_that_it_is_keyed_by(other):
    ours = drawn(context(("a",), [0]))
    assert not (drawn(other) == ours).any()


def test_noise_differs_by_name_view_and_image():
    made = context(("a",), [0, 0])
    rows = torch.cat([drawn(made), drawn(made, "dropout")])
    assert rows.unique().numel() == rows.numel()


def test_noise_is_not_what_others_draw_and_leaves_their_generator_alone():
    made = context(("a", "b"), [0, 1])
    first = drawn(made)
    before = torch.get_rng_state()
    torch.rand(3)
    assert drawn(made).equal(first)
    torch.set_rng_state(before)
    drawn(made)
    assert torch.get_rng_state().equal(before)


def test_noise_is_uniform_or_as_it_is_asked_for():
    made = context(("a",) * 1, [0] * 50)
    uniform = made.noise("u", torch.zeros(100, 200))
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    normal = made.noise("u", torch.zeros(100, 200), draw=torch.randn)
    assert abs(float(normal.std()) - 1) < 0.02


def test_a_layer_that_is_computed_again_draws_the_same():
    made, weight = context(("a", "b"), [0, 1]), torch.ones(4, 5, requires_grad=True)
    passes = []

    def layer(x):
        passes.append(drawn(made))
        return x * passes[-1]

    checkpoint(lambda x: layer(x).sin(), weight, use_reentrant=False).sum().backward()
    assert len(passes) == 2
    assert passes[0].equal(passes[1])
    noise = drawn(made)
    torch.testing.assert_close(weight.grad, noise.cos() * noise)


def test_without_samples_rows_are_numbered():
    bare = StageContext(seed=1, stage="selector")
    noise = bare.noise("gate", torch.zeros(3, 5))
    assert noise.unique().numel() == 15
    assert bare.noise("gate", torch.zeros(2, 5)).equal(noise[:2])


def test_some_rows_keep_what_belongs_to_them_and_layouts_stay_those_of_images():
    made = context(("a", "b"), [0, 1], scale=2)
    prompt = Prompt(torch.arange(4.0).view(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))
    made = replace(made, prompt=prompt, scales=(1, 2, 3, 4))
    some = made.of_rows(torch.tensor([3, 0, 3]))
    assert some.rows == (made.rows[3], made.rows[0], made.rows[3])
    assert some.scales == (4, 1, 4)
    assert some.prompt.embeds.flatten().tolist() == [3, 0, 3]
    assert some.layouts == made.layouts
    assert drawn(some).equal(drawn(made)[[3, 0, 3]])
    bare = StageContext().of_rows(torch.tensor([0]))
    assert (bare.rows, bare.scales, bare.prompt) == ((), (), None)


def test_losses_and_metrics_are_summed_under_the_name_of_their_stage():
    sink = Sink()
    selector = StageContext(sink=sink).at("selector")
    weight = torch.tensor(2.0, requires_grad=True)
    for count in (3, 1):
        selector.loss("sparsity", weight * count, count)
        selector.metric("open", weight * count, count)
    selector.at("resampler").loss("sparsity", weight, 1)
    assert {name: (float(total.detach()), count) for name, (total, count) in sink.losses.items()} == {
        "selector/sparsity": (8.0, 4),
        "resampler/sparsity": (2.0, 1),
    }
    assert sink.losses["selector/sparsity"][0].requires_grad
    total, count = sink.metrics["selector/open"]
    assert (float(total), count, total.requires_grad) == (8.0, 4, False)


def rated(tokens, made):
    """A stage that leaves a loss a token, a metric a row, noise and a picture."""
    scores = tokens.x[..., 0] * made.noise("gate", tokens.x[..., 0])
    made.loss("score", scores.sum(), scores.numel())
    made.metric("best", scores.amax(1).sum(), len(scores))
    for row, values in enumerate(scores):
        made.picture("score", row, values, tokens.yx[row])
    return tokens.with_features(tokens.x * scores[..., None])


def ragged():
    """Rows on grids of three shapes, and the context of six rows of three images."""
    shapes = [(2, 2), (2, 3), (2, 2), (1, 4), (2, 3), (2, 2)]
    generator = torch.Generator().manual_seed(0)
    parts = [VisualTokens.dense(torch.rand(1, r * c, 2, generator=generator), (r, c)) for r, c in shapes]
    return VisualTokens.stack(parts), parts, context(("a", "b", "c"), [0, 1, 2])


def test_grid_by_grid_a_stage_leaves_what_it_leaves_row_by_row():
    tokens, parts, made = ragged()
    whole, single = Sink(wants_pictures=True), Sink()
    out = on_each_grid(rated, tokens, replace(made, sink=whole), calls=5)
    for row, part in enumerate(parts):
        alone = rated(part, replace(made.of_rows(torch.tensor([row])), sink=single))
        n = part.x.shape[1]
        assert out.x[row, :n].equal(alone.x[0])
    for ours, theirs in ((whole.losses, single.losses), (whole.metrics, single.metrics)):
        assert {name: count for name, (_, count) in ours.items()} == {
            name: count for name, (_, count) in theirs.items()
        }
        for name, (total, _) in ours.items():
            torch.testing.assert_close(total, theirs[name][0])
    assert whole.losses["selector/score"][1] == 4 * 4 + 2 * 6
    assert whole.metrics["selector/best"][1] == 6


def test_pictures_are_left_where_somebody_looks_with_image_and_view():
    made = context(("a", "b"), [0, 1])
    tokens = VisualTokens.dense(torch.rand(4, 4, 2), (2, 2))
    looked, unseen = Sink(wants_pictures=True), Sink()
    for sink in (looked, unseen):
        rated(tokens, replace(made, sink=sink))
    assert unseen.pictures == {}
    assert [(image, one.view) for image, one in looked.pictures["selector/score"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_context_without_a_sink_leaves_nothing():
    made = context(("a",), [0])
    rated(VisualTokens.dense(torch.rand(2, 4, 2), (2, 2)), made)
    assert made.sink is None


def test_calls_that_are_made_for_other_ranks_alone_leave_nothing():
    tokens, _, made = ragged()
    few, many = Sink(wants_pictures=True), Sink(wants_pictures=True)
    calls = []

    def stage(some, given):
        calls.append(len(some.x))
        return rated(some, given)

    plain = on_each_grid(stage, tokens, replace(made, sink=few))
    more = on_each_grid(stage, tokens, replace(made, sink=many), calls=5)
    assert calls == [3, 2, 1, 3, 2, 1, 1, 1]
    assert more.x.equal(plain.x)
    assert many.losses["selector/score"][1] == few.losses["selector/score"][1]
    assert float(many.losses["selector/score"][0]) == float(few.losses["selector/score"][0])
    assert len(many.pictures["selector/score"]) == 6


def test_views_that_are_encoded_for_other_ranks_count_for_nothing():
    def encode(pixels, keys):
        calls.append(len(pixels))
        return VisualTokens.dense(pixels.flatten(2).transpose(1, 2), (pixels.shape[2], pixels.shape[3]))

    calls: list[int] = []
    pixels = torch.rand(3, 3, 2, 2)
    out = on_each_size(encode, pixels, (), calls=3)
    assert calls == [3, 1, 1]
    assert out.x.equal(pixels.flatten(2).transpose(1, 2))


def test_a_row_says_whose_it_is():
    assert [row for row in context(("a", "b"), [0, 1]).rows][2] == Row(image=1, sample=1, key="b/0/0/0", view=0)


def test_a_picture_knows_its_view_where_views_of_one_image_have_grids_of_several_shapes():
    tokens, _, made = ragged()
    sink = Sink(wants_pictures=True)
    on_each_grid(rated, tokens, replace(made, sink=sink))
    assert sorted((image, one.view) for image, one in sink.pictures["selector/score"]) == [
        (image, view) for image in range(3) for view in range(2)
    ]
    assert all(len(one.values) == len(one.yx) for _, one in sink.pictures["selector/score"])


class Every(PassThrough):
    """A selector that takes every second token, or none away."""

    def __init__(self, nothing):
        super().__init__()
        self.nothing = nothing

    def forward(self, tokens, context):
        return tokens if self.nothing else tokens.drop((torch.arange(6) % 2 == 0).expand_as(tokens.mask))


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("nothing", [True, False])
def test_the_model_leaves_a_picture_of_what_a_selector_keeps_where_somebody_looks(wanted, nothing):
    made, sink = context(("a",), [0]), Sink(wants_pictures=wanted)
    tokens = VisualTokens.dense(torch.rand(2, 6, 3), (2, 3))
    left = kept(Every(nothing), tokens, replace(made, sink=sink))
    assert left is tokens or not nothing
    assert bool(sink.pictures) == (wanted and not nothing)
    for view, (image, one) in enumerate(sink.pictures.get("selector/kept", ())):
        assert (image, one.view, one.grid) == (0, view, (2, 3))
        assert one.values.tolist() == [1.0] * 3
        assert one.yx.equal(tokens.yx[view, ::2])


def test_pictures_without_rows_are_of_images_of_one_view():
    sink = Sink(wants_pictures=True)
    made = StageContext(stage="selector", sink=sink)
    made.picture("score", 3, torch.ones(1), torch.zeros(1, 2), (1, 1))
    ((image, one),) = sink.pictures["selector/score"]
    assert (image, one.view, one.grid) == (3, 0, (1, 1))
