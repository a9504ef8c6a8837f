"""Gates as a stage: what is sampled, what is open, what is dropped, and the losses that hold them open or shut."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from beni.config.build import build_stage
from beni.errors import ConfigError
from beni.nn.gates import CLOSED
from beni.nn.streams import torch_stream
from beni.selector.gate import BOUND
from beni.selector.gate_values import Temperature
from beni.selector.multiplier import LIGHT, SPEED
from beni.stage import Row, Sink, StageContext
from beni.types import Prompt, TokenSpec, VisualTokens
from support.options import node

SPEC = TokenSpec(n=12, dim=16, grid=(3, 4))
WIDTH = 24
GATES = ("gate_gumbel", "gate_hard_concrete", "gate_hardkuma", "dynamicvit")
NO_PRIOR = {"prior": "none", "prior_values": [], "prior_weight": 0.0}
NO_TARGET = {"target": "none", "target_open": None, "target_weight": 0.0}


def gate(option="gate_gumbel", scale=1.0, **values):
    with torch_stream(0, "init", "selector"):
        stage = build_stage(node("selector", option) | {"hidden": 16} | values, tokens=SPEC, dim_out=WIDTH)
        stage.init_weights()
    if scale != 1.0:
        with torch.no_grad():
            for parameter in stage.scorer.parameters():
                parameter.mul_(scale)
    return stage


def tokens(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens.drawn(SPEC, rows, lambda *shape: torch.randn(*shape, generator=generator))


def context(rows=3, step=0, steps=100, pictures=False, keys=None):
    owners = tuple(Row(i, i, key) for i, key in enumerate(keys or [f"s{i}" for i in range(rows)]))
    generator = torch.Generator().manual_seed(3)
    prompt = Prompt(torch.randn(rows, 5, WIDTH, generator=generator), torch.ones(rows, 5, dtype=torch.bool))
    return StageContext(step, steps, rows=owners, prompt=prompt, seed=7, stage="selector", sink=Sink(pictures))


@pytest.mark.parametrize(
    "distribution", ["concrete", "straight_through", "hard_concrete", "hardkuma", "hardkuma_reflected"]
)
@pytest.mark.parametrize("start", [0.1, 0.5, 0.95])
def test_a_gate_starts_as_open_as_it_is_told(distribution, start):
    heat = (
        {"temperature": None, "temperature_end": None}
        if "kuma" in distribution
        else {"temperature": 1.0, "temperature_end": 1.0}
    )
    stage = gate(scale=0.0, distribution=distribution, start=start, cooling="constant", **heat).double()
    given = tokens()
    p = stage.gates(given.with_features(given.x.double()), context()).open
    torch.testing.assert_close(p, torch.full_like(p, start))


def test_a_larger_output_of_the_scorer_opens_every_kind_of_gate():
    for distribution in ("hardkuma", "hardkuma_reflected"):
        stage = gate("gate_hardkuma", distribution=distribution)
        before = stage.gates(tokens(), context()).open
        for output in (0, 1):
            with torch.no_grad():
                stage.offset[output] += 0.5
            after = stage.gates(tokens(), context()).open
            assert (after > before).all()
            before = after


@pytest.mark.parametrize("option", GATES)
def test_training_samples_and_evaluation_does_not(option):
    stage = gate(option)
    first, second = (stage.train()(tokens(), context(step=step)).log_gate for step in (0, 1))
    assert (first != second).any()
    assert (first <= 0).all()
    found = stage.eval()(tokens(), context())
    again = stage(tokens(), context(step=5))
    assert found.log_gate.equal(again.log_gate)
    assert set(found.log_gate.unique().tolist()) <= {0.0, -math.inf}
    assert found.x.equal(tokens().x)
    assert found.grid == SPEC.grid


def test_what_is_open_in_evaluation_is_above_one_half_or_the_most_open_ones():
    p = gate().gates(tokens(), context()).open
    opened = gate(start=0.5).eval()(tokens(), context()).log_gate == 0
    assert opened.equal(gate(start=0.5).gates(tokens(), context()).open > 0.5)
    assert 0 < opened.sum() < opened.numel()
    for keep, count in ((3, 3), (0.5, 6), (1.0, 12)):
        kept = gate(keep=keep).eval()(tokens(), context()).log_gate == 0
        assert (kept.sum(1) == count).all()
        for row, which in zip(p, kept, strict=True):
            assert row[which].min() >= (row[~which].max() if count < 12 else 0)


def test_where_no_gate_is_above_one_half_the_most_open_one_is_kept():
    stage = gate(start=0.01).eval()
    p = stage.gates(tokens(), context()).open
    assert p.max() < 0.5
    opened = stage(tokens(), context()).log_gate == 0
    assert opened.sum(1).tolist() == [1, 1, 1]
    assert opened.float().argmax(1).equal(p.argmax(1))


@pytest.mark.parametrize("positions", ["preserve", "compact"])
@pytest.mark.parametrize("keep", ["threshold", 4, 0.25])
def test_what_is_dropped_is_what_the_soft_gate_closes_in_evaluation(keep, positions):
    soft = gate(start=0.5, keep=keep).eval()
    drop = gate(start=0.5, keep=keep, phase="drop", positions=positions).eval()
    drop.load_state_dict(soft.state_dict())
    masked, dropped = (stage(tokens(), context()) for stage in (soft, drop))
    opened = masked.log_gate == 0
    assert 0 < opened.sum() < opened.numel()
    assert dropped.x[dropped.mask].equal(tokens().x[opened])
    assert not dropped.log_gate[dropped.mask].any()
    made, spec = dropped.laid.sum(1), drop.spec(SPEC)
    assert made.tolist() == [spec.n] * 3
    assert spec.gated
    assert spec.fixed == (keep != "threshold" and positions == "compact")
    if positions == "preserve":
        assert dropped.mask.equal(opened)


@pytest.mark.parametrize("option", GATES)
def test_dropping_is_learned_through_the_tokens_that_are_kept(option):
    stage = gate(option, start=0.6, phase="drop", **NO_TARGET).train()
    out = stage(tokens(), context())
    assert 0 < out.mask.sum() < out.mask.numel()
    gates = out.log_gate[out.mask]
    assert not gates.any()
    (gates * torch.randn(len(gates))).sum().backward()
    missing = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("phase", ["soft", "drop"])
def test_padding_and_closed_tokens_do_not_reach_the_gates_of_others(phase):
    shut = torch.zeros(3, 12, dtype=torch.bool)
    shut[:, 3:5] = True
    given = replace(
        tokens(), mask=tokens().mask & (torch.arange(12) < 10), log_gate=torch.where(shut, -math.inf, -0.5), grid=None
    )
    for option in GATES:
        stage = gate(option, phase=phase, start=0.5).train()
        before, after = (
            stage(one, context())
            for one in (given, given.with_features(torch.where((shut | ~given.mask)[..., None], 1e3, given.x)))
        )
        seen = given.mask & ~shut
        torch.testing.assert_close(before.log_gate[seen], after.log_gate[seen])
        assert before.mask[seen].equal(after.mask[seen])
        assert (before.log_gate[shut] <= CLOSED).all()
        losses = [one.sink.losses for one in (context(), context())]
        assert losses[0] == losses[1]


def losses_of(stage, rows, seed=0, keys=None):
    made = context(rows, keys=keys)
    stage(tokens(rows, seed), made)
    return made.sink.losses


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"target": "rate", "target_open": 0.3, "target_weight": 2.0}, lambda p: 2 * (p.mean(1) - 0.3).square().sum()),
        ({"target": "l1", "target_open": None, "target_weight": 0.5}, lambda p: 0.5 * p.sum()),
        (
            {"target": "lagrangian", "target_open": 0.3, "target_weight": 0.5},
            lambda p: 0.5 * (p.mean(1) - 0.3).square().sum() + 0.4 * (p.mean(1) - 0.3).sum(),
        ),
    ],
)
def test_targets_are_their_formulas(values, expected):
    stage = gate(**values)
    if stage.multiplier is not None:
        torch.nn.init.constant_(stage.multiplier, 0.4 / SPEED)
    (total, count), p = losses_of(stage, 3)["selector/target"], stage.gates(tokens(), context()).open
    torch.testing.assert_close(total, expected(p))
    assert count == (36 if values["target"] == "l1" else 3)


def test_priors_are_sums_of_divergences():
    def prior(option, kind, values):
        stage = gate(option, prior=kind, prior_values=values, prior_weight=0.5, **NO_TARGET)
        ((total, count),) = losses_of(stage, 3).values()
        return total, count, stage.gates(tokens(), context())

    total, count, gates = prior("gate_gumbel", "bernoulli", [0.2])
    p = gates.open
    expected = (p * (p / 0.2).log() + (1 - p) * ((1 - p) / 0.8).log()).sum()
    torch.testing.assert_close(total, 0.5 * expected)
    assert count == 36
    total, count, gates = prior("gate_hardkuma", "beta", [0.3, 1.0])
    torch.testing.assert_close(total, 0.5 * gates.kl_to_beta(0.3, 1.0).sum())
    total, count, gates = prior("gate_hardkuma", "kumaraswamy", [0.3, 2.0])
    torch.testing.assert_close(total, 0.5 * gates.kl_to_kumaraswamy(0.3, 2.0).sum())
    total, count, gates = prior("gate_gumbel", "beta_binomial", [1.0, 3.0])
    k = gates.open.sum(1).double()
    each = -(
        torch.lgamma(k + 1)
        + torch.lgamma(15 - k)
        - torch.lgamma(torch.tensor(16.0))
        - math.lgamma(1)
        - math.lgamma(3)
        + math.lgamma(4)
    )
    torch.testing.assert_close(total.double(), 0.5 * each.sum() / 12, rtol=1e-5, atol=1e-6)
    assert count == 3


def test_a_multiplier_goes_up_while_too_many_gates_are_open_and_gates_go_down_the_loss():
    stage = gate(target_open=0.3)
    torch.nn.init.constant_(stage.multiplier, 1.0)
    ((total, _),) = losses_of(stage, 3).values()
    total.backward()
    excess = (stage.gates(tokens(), context()).open.mean(1) - 0.3).sum()
    assert excess > 0
    torch.testing.assert_close(stage.multiplier.grad, -LIGHT * excess.detach()[None])
    assert stage.offset.grad > 0  # a step against the gradient closes gates
    torch.optim.AdamW([stage.multiplier], lr=1e-3, weight_decay=0).step()
    made = context()
    stage(tokens(), made)
    assert float(made.sink.metrics["selector/multiplier"][0]) == pytest.approx(SPEED * 1.001)


@pytest.mark.parametrize("target", ["rate", "l1", "lagrangian"])
def test_losses_and_gradients_of_micro_batches_add_up_to_those_of_the_step(target):
    wanted = None if target == "l1" else 0.3
    whole, parts = (
        gate(target=target, target_open=wanted, prior="beta_binomial", prior_values=[1.0, 3.0], prior_weight=0.1)
        for _ in range(2)
    )
    sum(total for total, _ in losses_of(whole, 4).values()).backward()
    made = context(4)
    for where in ([0], [1, 2, 3]):
        rows = torch.tensor(where)
        part = replace(made.of_rows(rows), sink=Sink())
        parts(tokens(4).select(rows), part)
        sum(total for total, _ in part.sink.losses.values()).backward()
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("option", "wanted"), [("gate_gumbel", 0.7), ("gate_hard_concrete", 0.3), ("gate_hardkuma", 0.3)]
)
def test_the_share_that_is_wanted_comes_about_whatever_the_task_wants(option, wanted):
    """Every gate is drawn open; the square alone would end above the share."""
    shares = {}
    for target in ("lagrangian", "rate"):
        stage = gate(option, **NO_PRIOR | {"target": target, "target_open": wanted, "target_weight": 2.0}).train()
        optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
        last = []
        for step in range(300):
            made = context(step=step, steps=300)
            out = stage(tokens(seed=step % 5), made)
            task = -(out.log_gate.clamp(min=CLOSED).exp() + 1e-3).log().mean()
            ((total, count),) = made.sink.losses.values()
            optimizer.zero_grad()
            (0.1 * task + total / count).backward()
            optimizer.step()
            opened, rows = made.sink.metrics["selector/open"]
            last.append(float(opened) / rows)
        assert last[0] == pytest.approx(0.85, abs=0.12)
        shares[target] = sum(last[-60:]) / 60
    assert shares["lagrangian"] == pytest.approx(wanted, abs=0.06)
    assert shares["rate"] > wanted


def test_no_gate_is_so_shut_or_so_open_that_it_has_no_gradient_left():
    stage = gate(scale=1e3)
    p = stage.gates(tokens(), context()).open.detach()
    assert p.min() == pytest.approx(1 / (1 + math.exp(BOUND)), rel=1e-3)
    assert p.max() == pytest.approx(1 / (1 + math.exp(-BOUND)), rel=1e-3)


def test_temperatures_fall_over_half_of_the_steps():
    for cooling, half in (("linear", 0.75), ("exponential", 0.5**0.5)):
        cools = Temperature(1.0, 0.5, cooling)
        assert [cools.at(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([1.0, half, 0.5, 0.5])
        assert cools.at(10, 0) == 1.0
    assert Temperature(2 / 3, 2 / 3, "constant").at(70, 100) == pytest.approx(2 / 3)
    made = [context(step=step) for step in (0, 60)]
    for one in made:
        gate().train()(tokens(), one)
    assert [float(one.sink.metrics["selector/temperature"][0]) for one in made] == pytest.approx([1.0, 0.5])


def test_how_open_a_gate_is_in_evaluation_does_not_depend_on_the_step():
    stage = gate("gate_hard_concrete", temperature=2.0, temperature_end=0.5, cooling="linear")
    drawn = [stage.train().gates(tokens(), context(step=step)).open for step in (0, 99)]
    asked = [stage.eval().gates(tokens(), context(step=step)).open for step in (0, 99)]
    assert (drawn[0] - drawn[1]).abs().min() > 1e-3
    assert asked[0].equal(asked[1])
    assert asked[0].equal(drawn[1])


def test_how_open_gates_are_is_told_and_drawn():
    stage, made = gate(start=0.5), context(pictures=True)
    given = replace(tokens(), mask=torch.arange(12) < torch.tensor([12, 7, 1])[:, None], grid=None)
    stage(given, made)
    p = stage.gates(given, made).open.detach()
    opened, count = made.sink.metrics["selector/open"]
    assert count == 3
    torch.testing.assert_close(opened, p[0].mean() + p[1, :7].mean() + p[2, 0])
    hard, _ = made.sink.metrics["selector/open_hard"]
    above = (p > 0.5).float()
    torch.testing.assert_close(hard, above[0].mean() + above[1, :7].mean() + 1)
    drawn = made.sink.pictures["selector/open"]
    assert [len(one.values) for _, one in drawn] == [12, 7, 1]
    torch.testing.assert_close(drawn[1][1].values, p[1, :7])


@pytest.mark.parametrize(
    ("option", "values", "told"),
    [
        ("gate_gumbel", {"temperature_end": 1.0}, "selector.cooling=exponential"),
        ("gate_gumbel", {"temperature": None}, "needs both"),
        ("gate_hardkuma", {"temperature": 1.0}, "has no temperature"),
        ("gate_gumbel", {"positions": "compact"}, "selector.positions=compact with selector.phase=soft"),
        ("gate_gumbel", {"target_open": None}, "selector.target=lagrangian with selector.target_open=null"),
        ("gate_gumbel", {"target": "l1"}, "selector.target=l1 with selector.target_open=0.25"),
        ("gate_gumbel", {"target_weight": 0.0}, "selector.target=lagrangian with selector.target_weight=0.0"),
        ("gate_gumbel", {"prior": "bernoulli"}, r"selector.prior_values=\[\]"),
        ("gate_gumbel", {"prior": "bernoulli", "prior_values": [2.0], "prior_weight": 1.0}, "a rate below 1"),
        ("gate_gumbel", {"prior_weight": 1.0}, "selector.prior=none with selector.prior_weight=1.0"),
        (
            "gate_gumbel",
            {"prior": "beta", "prior_values": [0.5, 1.0], "prior_weight": 1.0},
            "set selector.prior=bernoulli",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_a_fix(option, values, told):
    with pytest.raises(ConfigError, match=told) as caught:
        gate(option, **values)
    assert "  fix: set selector." in str(caught.value)


def task(step, rows=32):
    """Tokens of which a quarter is marked in its first channel; the answer is the mean of their second one."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(rows, 12, 16, generator=generator)
    marked = torch.rand(rows, 12, generator=generator).argsort(1) < 3
    x[..., 0] = torch.where(marked, 2.0, -2.0)
    return replace(tokens(rows), x=x), marked, (x[..., 1] * marked).sum(1) / 3


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("gate_gumbel", {}),
        ("gate_gumbel", {"distribution": "straight_through"}),
        ("gate_hard_concrete", {"target": "lagrangian", "target_open": 0.25, "target_weight": 2.0}),
        ("gate_hardkuma", {}),
        ("dynamicvit", {"target_open": 0.25}),
    ],
    ids=["concrete", "straight_through", "hard_concrete", "hardkuma", "dynamicvit"],
)
def test_a_gate_learns_which_tokens_an_answer_needs(option, values):
    """An attention that weighs all tokens alike is told apart from one that has the right ones by the gates alone."""
    stage = gate(option, **values | {"keep": 3}).train()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=5e-3)
    for step in range(250):
        given, _, answer = task(step)
        made = replace(context(32, step=step, steps=250), prompt=None)
        log_gate = stage(given, made).log_gate.clamp(min=-30)
        read = (log_gate.softmax(1) * given.x[..., 1]).sum(1)
        losses = sum(total / count for total, count in made.sink.losses.values())
        optimizer.zero_grad()
        (4 * (read - answer).square().mean() + losses).backward()
        optimizer.step()
    given, marked, _ = task(10**6)
    opened = stage.eval()(given, replace(context(32), prompt=None)).log_gate == 0
    assert (opened & marked).sum() / marked.sum() > 0.95  # chance is 0.25
