"""A router gives an image one of two budgets: what it sees, what gates say, what is dropped, and how it is taught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from beni.data.batch.collate import collate
from beni.errors import CompositionError, ConfigError
from beni.model.build import build
from beni.nn.streams import torch_stream
from beni.selector.gate import BOUND
from beni.selector.multiplier import LIGHT, SPEED
from beni.selector.router import Router
from beni.stage import Row, Sink, StageContext
from beni.types import TokenSpec, VisualTokens
from support.options import node

SPEC = TokenSpec(n=12, dim=8, grid=(3, 4))
VALUES = {name: value for name, value in node("selector", "router").items() if name != "_target_"} | {"hidden": 16}
NO_TARGET = {"target_fine": None, "target_weight": 0.0}


def router(scale=3.0, **values):
    """Its head says different things of different images, unless scale is 0."""
    with torch_stream(0, "init", "selector"):
        stage = Router(SPEC, **VALUES | values)
        stage.init_weights()
    with torch.no_grad():
        stage.router.fc2.weight.mul_(10 * scale)
    return stage.double().eval()


def tokens(rows=6, seed=0):
    x = torch.randn(rows, 12, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return VisualTokens.dense(x, (3, 4))


def context(*images, **fields):
    """Rows of these images, one after another."""
    rows = tuple(Row(image, image, f"{image}/{i}", i) for i, image in enumerate(images))
    return StageContext(rows=rows, sink=Sink(), **fields)


def said(stage, given):
    """Logits of P(fine), within what keeps a gradient alive."""
    return BOUND * torch.tanh(stage.router(given.x, StageContext()) / BOUND)


@torch.no_grad()
def test_an_image_has_all_tokens_of_one_budget_and_none_of_the_other():
    stage, given = router(phase="drop"), tokens()
    p = said(stage, given).sigmoid()
    out = stage(given, StageContext())
    many = p >= 0.5
    assert 0 < many.sum() < 6
    assert out.mask.sum(1).tolist() == [12 if fine else 3 for fine in many]
    for i, fine in enumerate(many):
        left = out.x[i][out.mask[i]]
        map_ = given.x[i].T.view(8, 3, 4)
        expected = given.x[i] if fine else F.adaptive_avg_pool2d(map_, (1, 3)).flatten(1).T
        torch.testing.assert_close(left, expected)
        assert (out.log_gate[i][out.mask[i]] == 0).all()
        assert out.size[i][out.mask[i]].sum() == 12
    assert out.laid.all()


@torch.no_grad()
def test_a_threshold_is_the_least_probability_of_the_large_budget():
    given = tokens(64)
    p = said(router(), given).sigmoid()
    for threshold in (0.2, 0.4, 0.8):
        out = router(phase="drop", threshold=threshold)(given, StageContext())
        assert (out.mask.sum(1) == 12).equal(p >= threshold)


def test_while_training_what_one_budget_gains_the_other_loses():
    stage, given = router(**NO_TARGET).train(), tokens()
    out = stage(given, context(*range(6), step=3))
    z = out.log_gate.exp()
    assert out.mask.all()
    assert (z[:, :12] == z[:, :1]).all()
    assert (z[:, 12:] == z[:, 12:13]).all()
    torch.testing.assert_close(z[:, 0] + z[:, 12], torch.ones(6, dtype=torch.float64))
    logits = said(stage, given)
    drawn = torch.logit(z[:, 0]) * stage.temperature - logits  # the logistic noise
    again = torch.logit(stage(given, context(*range(6), step=3)).log_gate[:, 0].exp()) * stage.temperature - logits
    torch.testing.assert_close(drawn, again)
    other = stage(given, context(*range(6), step=4)).log_gate[:, 0]
    assert (other != out.log_gate[:, 0]).all()
    (out.log_gate[:, 0] - out.log_gate[:, 12]).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in stage.parameters())


def test_half_of_the_samples_take_the_large_budget_if_its_probability_is_one_half():
    stage = router(scale=0.0, **NO_TARGET).train()
    with torch.no_grad():
        stage.router.fc2.weight.zero_()
    many = stage(tokens(2000), context(*range(2000))).log_gate[:, 0] > torch.tensor(0.5).log()
    assert abs(float(many.float().mean()) - 0.5) < 4 * 0.5 / 2000**0.5


@torch.no_grad()
@pytest.mark.parametrize("phase", ["soft", "drop"])
def test_views_of_an_image_are_routed_alike_and_by_all_of_them(phase):
    stage, given = router(phase=phase).train(phase == "soft"), tokens()
    together = stage(given, context(0, 0, 0, 1, 1, 2))
    marks = together.log_gate[:, 0] if phase == "soft" else together.mask.sum(1).double()
    assert marks[0] == marks[1] == marks[2]
    assert marks[3] == marks[4]
    views = (given.x * stage.router.att(given.x).softmax(1)).sum(1)
    logits = stage.router(given.x, context(0, 0, 0, 1, 1, 2))
    for rows in ([0, 1, 2], [3, 4], [5]):
        mean = stage.router.norm(views[rows].mean(0))
        torch.testing.assert_close(logits[rows[0]], stage.router.fc2(F.gelu(stage.router.fc1(mean)))[0])
    changed = replace(given, x=torch.cat([given.x[:4], given.x[4:5] + 1, given.x[5:]]))
    other = stage.router(changed.x, context(0, 0, 0, 1, 1, 2))
    assert other[[0, 1, 2, 5]].equal(logits[[0, 1, 2, 5]])
    assert (other[[3, 4]] != logits[[3, 4]]).all()


def test_gates_that_are_not_drawn_are_open_or_closed_and_open_ones_teach_the_head():
    given = tokens()
    for phase in ("soft", "drop"):
        stage = router(phase=phase, **NO_TARGET)
        out = stage(given, StageContext())
        logits = said(stage, given)
        fine = logits >= 0
        assert out.log_gate[:, 0][fine].eq(0).all()
        if phase == "soft":
            assert out.log_gate[:, 12][fine].eq(-torch.inf).all()
            assert out.log_gate[:, 0][~fine].eq(-torch.inf).all()
        own = torch.where(fine, out.log_gate[:, 0], out.log_gate[:, 12]).sum()
        (ours,) = torch.autograd.grad(own, stage.router.fc2.bias, retain_graph=True)
        (theirs,) = torch.autograd.grad(
            torch.where(fine, logits.sigmoid(), 1 - logits.sigmoid()).log().sum(), [stage.router.fc2.bias]
        )
        torch.testing.assert_close(ours, theirs)


def test_the_losses_are_the_price_and_the_multiplier_times_the_excess():
    stage = router(target_fine=0.25, target_weight=2.0, price=0.5).train()
    with torch.no_grad():
        stage.multiplier.fill_(0.3)
    given, seen = tokens(), context(*range(6))
    stage(given, seen)
    p = said(stage, given).sigmoid()
    price, count = seen.sink.losses["/price"]
    torch.testing.assert_close(price, 0.5 * p.sum())
    target, rows = seen.sink.losses["/target"]
    assert count == rows == 6
    excess = (p - 0.25).sum()
    torch.testing.assert_close(target, SPEED * 0.3 * excess + 2 * (p - 0.25).square().sum())
    multiplier, head = torch.autograd.grad(target, [stage.multiplier, stage.router.fc2.bias], retain_graph=True)
    torch.testing.assert_close(multiplier, -LIGHT * excess.detach()[None])
    (slope,) = torch.autograd.grad(p.sum(), [stage.router.fc2.bias], retain_graph=True)
    (square,) = torch.autograd.grad((p - 0.25).square().sum(), [stage.router.fc2.bias])
    torch.testing.assert_close(head, SPEED * 0.3 * slope + 2 * square)
    assert stage.auxiliary == {"target": "rows", "price": "rows"}
    assert router(**NO_TARGET).auxiliary == {}


def test_a_target_is_reached_though_the_task_wants_the_large_budget():
    stage, given = router(scale=0.1, target_fine=0.25, start=0.9).train(), tokens(64)
    optimizer = torch.optim.Adam(stage.parameters(), lr=0.01)
    for step in range(300):
        seen = context(*range(64), step=step)
        out = stage(given, seen)
        wanted = -0.5 * out.log_gate[:, 0].exp().mean()
        (wanted + seen.sink.losses["/target"][0] / 64).backward()
        optimizer.step()
        optimizer.zero_grad()
    (p, count) = seen.sink.metrics["/fine"]
    assert float(p / count) == pytest.approx(0.25, abs=0.06)


def test_its_spec_tells_what_is_laid_out_and_what_is_to_be_expected():
    soft, drop = router().spec(SPEC), router(phase="drop", target_fine=0.25).spec(SPEC)
    assert (soft.n, soft.fixed, soft.grid, soft.gated) == (15, True, None, True)
    assert (drop.n, drop.fixed, drop.mean, drop.gated) == (15, False, 0.25 * 12 + 0.75 * 3, True)
    assert router(phase="drop", **NO_TARGET).spec(SPEC).mean is None


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"coarse": 0.5, "fine": 0.25}, "selector.coarse=0.5 leaves 6 tokens of 12, selector.fine=0.25 leaves 3"),
        ({"coarse": 12, "fine": 1.0}, "selector.coarse=12 leaves 12 tokens of 12, selector.fine=1.0 leaves 12"),
        ({"target_fine": None}, r"selector.target_fine=null with selector.target_weight=1.0"),
        ({"positions": "compact"}, "selector.positions=compact with selector.phase=soft"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, error):
    with pytest.raises(ConfigError, match=rf"{error}.*\n  fix: .+"):
        router(**values)


def test_tokens_with_gates_or_without_a_grid_are_refused():
    with pytest.raises(CompositionError, match=r"^E-GATE \[selector\]: .*\n  fix: put router first"):
        router().spec(replace(SPEC, gated=True))
    with pytest.raises(CompositionError, match=r"^E-GRID"):
        Router(replace(SPEC, grid=None), **VALUES)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_dropping_a_budget_is_closing_it_and_the_weights_go_from_one_phase_to_the_other(tiny_run, steps_of, layout):
    def made(phase):
        run = tiny_run("vision.architecture.patch_size=6")
        run["selector"] = node("selector", "router") | {"hidden": 16, "phase": phase}
        model = build(run).eval()
        steps = steps_of(run, model)
        return model, [steps.items(0, index)[0][0] for index in range(6)]

    soft, items = made("soft")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in soft.named_parameters():
        if "router.fc2.bias" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    drop, _ = made("drop")
    drop.load_state_dict(soft.state_dict())
    inputs = collate(items, layout, 0).model_inputs()
    soft.selector.threshold = drop.selector.threshold = float(
        soft.selector.router(soft.vision(inputs["pixels"]).x, StageContext()).sigmoid().median()
    )
    masked, dropped = soft(**inputs), drop(**inputs)
    kept = drop.encode_images(inputs["pixels"]).mask.sum(1)
    assert set(kept.tolist()) == {16, 4}
    torch.testing.assert_close(dropped.logits, masked.logits, rtol=1e-5, atol=1e-5)
