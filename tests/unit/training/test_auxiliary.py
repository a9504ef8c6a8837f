"""Auxiliary losses: divided by the count of the whole step, logged by name, and never in the loss that is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from beni.model.build import build
from beni.training.step import forward_backward
from support.processes import run_ranks

CPU = torch.device("cpu")
OVERRIDES = ("data.text_share=0.3", "data.pictures_share=0.3", "train.batch_size=8")


@pytest.fixture
def rated(tiny_run, monkeypatch):
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run(*OVERRIDES)
    run["selector"] = {"_target_": "support.stages.Rated"}
    return run


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(ours, theirs):
    """The largest relative distance of a tensor's gradients."""
    assert ours.keys() == theirs.keys()
    floor = max(float(gradient.norm()) for gradient in theirs.values()) * 1e-3
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=floor)) for n in theirs)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_one_step_has_one_gradient_however_it_is_cut(rated, steps_of, layout):
    results = {}
    for accumulation in (1, 2, 4, 8):
        model = build(rated).eval()
        batches = steps_of(rated, model, accumulation=accumulation, layout=layout)[0]
        result = forward_backward(model, batches, 0, CPU, "fp32")
        values = {name: float(value) for name, value in result.auxiliary.items()}
        results[accumulation] = gradients(model), float(result.loss), values
    expected, loss, auxiliary = results[1]
    assert auxiliary.keys() == {"selector/row", "selector/token"}
    assert min(auxiliary.values()) > 0
    for ours, own_loss, own in results.values():
        assert apart(ours, expected) <= 1e-6
        assert own_loss == pytest.approx(loss, rel=1e-6)
        assert own == pytest.approx(auxiliary, rel=1e-6)


def test_the_loss_that_is_logged_is_that_of_the_tokens(rated, tiny_run, steps_of):
    model = build(rated).eval()
    batches = steps_of(rated, model)[0]
    with_them = forward_backward(model, batches, 0, CPU, "fp32")
    plain = build(tiny_run(*OVERRIDES)).eval()
    assert float(forward_backward(plain, batches, 0, CPU, "fp32").loss) == float(with_them.loss)
    assert model.selector.direction.grad.abs().max() > 0
    assert apart({k: v for k, v in gradients(model).items() if "selector" not in k}, gradients(plain)) > 1e-3


def test_two_ranks_have_the_gradient_of_one(rated, steps_of, tmp_path):
    alone = build(rated).eval()
    result = forward_backward(alone, steps_of(rated, alone)[0], 0, CPU, "fp32")
    program = Path(__file__).parents[2] / "support" / "auxiliary_rank.py"
    for mode in ("none", "full"):
        ranks = run_ranks(program, {"run": rated, "mode": mode}, tmp_path / mode, world=2, seconds=240)
        for rank in ranks:
            assert rank["loss"] == pytest.approx(float(result.loss), rel=1e-6)
            assert rank["auxiliary"] == pytest.approx({n: float(v) for n, v in result.auxiliary.items()}, rel=1e-6)
            ours = {name: torch.tensor(value) for name, value in rank["gradients"].items()}
            assert apart(ours, gradients(alone)) <= 1e-6


def test_a_step_logs_them_by_stage_and_name_beside_metrics(rated, fit, tmp_path):
    seen = {}
    log = fit.log()
    log.train = lambda step, values: seen.setdefault(step, values)
    fit(rated, tmp_path, log=log)
    assert {"aux/selector/row", "aux/selector/token", "selector/score", "loss"} <= seen[1].keys()


def test_a_stage_that_counts_otherwise_than_it_declares_is_an_error(rated, steps_of, monkeypatch):
    model = build(rated).eval()
    monkeypatch.setattr(type(model.selector), "auxiliary", {"row": "tokens", "token": "tokens"})
    batches = steps_of(rated, model)[0]
    with pytest.raises(RuntimeError, match=r"selector/row is a sum over \d+; its stage declares \d+"):
        forward_backward(model, batches, 0, CPU, "fp32")
