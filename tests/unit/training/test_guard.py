"""Steps that would spoil a run are seen, and left out as the run asks; what follows is what would have come anyway."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from beni.errors import DivergenceError
from beni.training.guard import Guard, Rewind

SETTINGS = {"nonfinite": "halt", "spike": "accept", "threshold": 10.0, "window": 16, "most": 3}
RUN = ("train.steps=8", "checkpoint.every=2", "optim.lr=1e-2", "optim.warmup_ratio=0")
MODEL = nn.Linear(2, 2)


def guard(**settings):
    return Guard(SETTINGS | settings)


def accepts(of, losses, norm=1.0):
    return [of.accepts(MODEL, step, loss, norm, "a")[0] for step, loss in enumerate(losses, start=1)]


def test_a_jump_is_one_by_the_spread_of_the_losses_before():
    calm = [2.0 + 0.01 * (i % 3) for i in range(10)]
    assert accepts(guard(spike="skip"), [*calm, 2.15, 3.0, 2.0]) == [*[True] * 11, False, True]
    assert accepts(guard(), [*calm, 30.0]) == [True] * 11


def test_few_losses_are_not_judged_by():
    assert accepts(guard(spike="skip"), [1.0, 1.0, 50.0, 1.0]) == [True] * 4


def test_a_jump_that_was_left_out_is_not_looked_back_at():
    of = guard(spike="skip", most=9)
    assert accepts(of, [1.0] * 10 + [9.0] * 5 + [1.0])[-6:] == [*[False] * 5, True]
    assert max(of.losses) == 1.0


def test_more_than_the_most_end_the_run():
    of = guard(nonfinite="skip", most=2)
    accepts(of, [float("nan")] * 2)
    with pytest.raises(DivergenceError, match=r"(?s)step 3 is nan.*2 steps were skipped before.*guard.most"):
        of.accepts(MODEL, 3, float("nan"), 1.0, "a")


def test_a_gradient_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[1].weight.grad[0, 0] = float("inf")
    told = r"gradient of step 4 is not finite.*first non-finite gradient: 1\.weight; samples .*: a, b"
    with pytest.raises(DivergenceError, match=told):
        guard(spike="halt").accepts(model, 4, 1.0, float("inf"), ["a", "b"])
    later = guard()
    later.accepts(model, 4, 1.0, float("inf"), ["a", "b"])
    with pytest.raises(DivergenceError, match=told):
        later.settle(model)


def test_a_run_that_only_ends_at_them_learns_of_numbers_that_are_not_finite_when_it_settles():
    of, nan = guard(), torch.tensor(float("nan"))
    assert not of.reads_every_step
    for step, loss in ((1, torch.tensor(1.0)), (2, nan), (3, nan)):
        assert of.accepts(MODEL, step, loss, torch.tensor(1.0), [f"sample {step}"]) == (True, None)
    with pytest.raises(DivergenceError, match=r"loss of step 2 is nan; samples of this process: sample 2"):
        of.settle(MODEL)
    assert [guard(**{key: "skip"}).reads_every_step for key in ("nonfinite", "spike")] == [True, True]


@pytest.mark.parametrize("due", ["checkpoint.every=4", "eval.every=5", "log.every=6"])
def test_what_outlives_a_step_comes_after_all_steps_have_been_looked_at(tiny_run, fit, tmp_path, spoilt, due):
    spoilt(3)
    log, evaluated = fit.log(), []
    run = tiny_run(*RUN, "log.every=100", "checkpoint.every=0", due)
    with pytest.raises(DivergenceError, match="loss of step 3 is nan"):
        fit(run, tmp_path, log=log, evaluate=evaluated.append)
    assert (evaluated, log.saves, set(log.losses)) == ([], [], {1})


def test_nothing_is_read_from_the_device_in_a_step_that_does_not_log(tiny_run, fit, tmp_path, monkeypatch):
    reads = []
    read = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(1) or read(tensor))
    counts = []
    for steps in (3, 9):
        reads.clear()
        quiet = ("log.every=100", "checkpoint.every=0", f"train.steps={steps}")
        fit(tiny_run(*RUN, *quiet), tmp_path / str(steps))
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0


def test_a_checkpoint_keeps_what_decisions_rest_on():
    one, other = guard(spike="skip"), guard(spike="skip")
    losses = [1.0] * 9 + [7.0]
    accepts(one, losses)
    other.begin(one.state())
    assert (other.losses, other.left_out) == (one.losses, {10})
    assert other.metrics() == {"steps_left_out": 1.0}


def test_a_rewind_is_asked_for_once_a_step():
    of = guard(spike="rewind")
    with pytest.raises(Rewind, match=r"the loss of step 10 is 7, .* samples of this process: a"):
        accepts(of, [*[1.0] * 9, 7.0])
    of.begin({"losses": [1.0] * 8})
    assert of.accepts(MODEL, 10, 7.0, 1.0, "a") == (False, None)


@pytest.fixture
def spoilt(monkeypatch):
    """spoilt(step): that step's loss and gradients are not finite, each time."""
    from beni.training import attempt

    forward_backward = attempt.forward_backward

    def make(number):
        def run(model, batches, step, *rest):
            result = forward_backward(model, batches, step, *rest)
            if step + 1 != number:
                return result
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            return replace(result, loss=torch.tensor(float("nan")))

        monkeypatch.setattr(attempt, "forward_backward", run)

    return make


def test_a_run_ends_at_a_loss_that_is_not_finite(tiny_run, fit, tmp_path, spoilt):
    spoilt(3)
    with pytest.raises(DivergenceError, match=r"(?s)loss of step 3 is nan; first non-finite gradient: .*fix:"):
        fit(tiny_run(*RUN), tmp_path)


def test_what_thaws_on_either_side_of_a_spoilt_step_is_the_same_when_the_run_goes_back(tiny_run, fit, tmp_path, spoilt):
    spoilt(4)  # of 8 steps; step 2 has the newest checkpoint, the llm begins after it and vision with step 7
    settings = (*RUN, "train.thaw.llm=0.25", "train.thaw.vision=0.75", "train.ema=0.5")
    model, log = fit(tiny_run(*settings, "train.guard.nonfinite=rewind"), tmp_path / "rewind")
    other, theirs = fit(tiny_run(*settings, "train.guard.nonfinite=skip"), tmp_path / "skip")
    del log.losses[4], theirs.losses[4]
    assert log.losses == theirs.losses
    for name, tensor in other.state_dict().items():
        assert model.state_dict()[name].equal(tensor), name


def test_time_is_counted_once_when_a_run_goes_back(tiny_run, fit, tmp_path, spoilt, monkeypatch):
    from beni.measure.goodput import Goodput
    from beni.training import attempt

    spoilt(4)
    now, seen, log = [3.0], [], fit.log()
    forward_backward = attempt.forward_backward

    def run(*arguments):
        now[0] += 10.0
        return forward_backward(*arguments)

    def train(step, values):
        shares = [value for name, value in values.items() if name.startswith("goodput/")]
        seen.append((step, values["wall_s"], sum(shares)))
        assert values["wall_s"] * values["goodput/compute"] == pytest.approx(10.0 * step)

    monkeypatch.setattr(attempt, "forward_backward", run)
    monkeypatch.setattr(attempt, "Goodput", partial(Goodput, clock=lambda: now[0]))
    monkeypatch.setattr(log, "train", train)
    fit(tiny_run(*RUN, "train.guard.nonfinite=rewind"), tmp_path, log=log, spent=5.0, started=0.0)
    taken = [*range(1, 4), *range(5, 11)]  # 3 steps; the one that is thrown away; steps 3 to 8
    steps = [*range(1, 4), *range(3, 9)]
    assert seen == [(step, 5.0 + 3.0 + 10.0 * n, pytest.approx(1.0)) for step, n in zip(steps, taken, strict=True)]


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_spoilt_step_is_left_out_and_nothing_of_it_stays(tiny_run, fit, tmp_path, spoilt, policy):
    spoilt(4)
    run = tiny_run(*RUN, f"train.guard.nonfinite={policy}", "train.ema=0.5")
    model, log = fit(run, tmp_path / policy)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sorted(log.losses) == [*range(1, 9)]
    assert any("step 4" in notice and "skip" in notice for notice in log.notices)
    # the other policy, and a run that is interrupted on the far side, come to the same digits
    other = "rewind" if policy == "skip" else "skip"
    _, theirs = fit(tiny_run(*RUN, f"train.guard.nonfinite={other}", "train.ema=0.5"), tmp_path / other)
    fit(run, tmp_path / "cut", stop=5)
    _, resumed = fit(run, tmp_path / "cut")
    after = {step: loss for step, loss in log.losses.items() if step > 4}
    assert {step: theirs.losses[step] for step in after} == after
    assert resumed.began == 4
    assert {step: resumed.losses[step] for step in after} == after


def test_without_a_checkpoint_a_run_goes_back_to_its_beginning(tiny_run, fit, tmp_path, spoilt):
    spoilt(3)
    settings = (*RUN, "checkpoint.every=0", "train.ema=0.5")
    model, log = fit(tiny_run(*settings, "train.guard.nonfinite=rewind"), tmp_path / "rewind")
    other, theirs = fit(tiny_run(*settings, "train.guard.nonfinite=skip"), tmp_path / "skip")
    assert any("loss of step 3 is nan" in told and "skip step 3" in told for told in log.notices)
    del log.losses[3], theirs.losses[3]
    assert log.losses == theirs.losses
    for name, tensor in other.state_dict().items():
        assert model.state_dict()[name].equal(tensor), name
