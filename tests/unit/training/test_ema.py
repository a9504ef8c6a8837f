"""The average of the weights: its recursion, and where it stands in for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beni.model.build import build
from beni.training.ema import Average

RUN = ("train.steps=4", "train.ema=0.8", "optim.lr=1e-2")


def test_the_average_is_the_recursion_over_the_weights_after_each_step():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, expected = Average(model, 0.8), model.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            model.weight += step + 1
        average.update()
        expected = 0.8 * expected + 0.2 * model.weight.detach()
    assert set(average.tensors) == {"weight"}
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_inside_the_block_the_model_has_the_average_and_after_it_its_weights_bit_for_bit():
    model = nn.Linear(3, 2)
    average = Average(model, 0.8)
    with torch.no_grad():
        model.weight.normal_()
    average.update()
    weights, averages = model.weight.detach().clone(), average.tensors["weight"].clone()
    with average.in_place_of_weights(model):
        assert model.weight.equal(averages)
    assert model.weight.equal(weights)
    assert average.tensors["weight"].equal(averages)
    assert not weights.equal(averages)


def test_without_a_decay_nothing_is_kept_or_changed():
    model = nn.Linear(3, 2)
    average, before = Average(model, 0.0), model.weight.detach().clone()
    average.update()
    average.swap(model)
    assert average.tensors == {}
    assert model.weight.equal(before)


@pytest.fixture
def scored():
    """scored(fit, run, folder) -> the model fit returns, its log, and its weights at each evaluation."""

    def make(fit, run, folder, **options):
        model, seen = build(run), {}

        def evaluate(step):
            seen[step] = {n: p.detach().clone() for n, p in model.named_parameters()}

        _, log = fit(run, folder, model=model, evaluate=evaluate, **options)
        return model, log, seen

    return make


def test_the_average_is_scored_and_left_in_the_model_and_training_does_not_notice(tiny_run, fit, scored, tmp_path):
    weights = scored(fit, tiny_run(*RUN, "train.ema=0", "eval.every=1"), tmp_path / "plain")
    averages = scored(fit, tiny_run(*RUN, "eval.every=1"), tmp_path / "averaged")
    assert averages[1].losses == weights[1].losses
    expected = {name: p.detach() for name, p in build(tiny_run(*RUN)).named_parameters()}
    for step in range(1, 5):
        expected = {n: 0.8 * expected[n] + 0.2 * weights[2][step][n] for n in expected}
        for name, tensor in averages[2][step].items():
            torch.testing.assert_close(tensor, expected[name], msg=name)
    for name, parameter in averages[0].named_parameters():
        assert parameter.equal(averages[2][4][name]), name
    assert any(not p.equal(weights[2][4][n]) for n, p in averages[0].named_parameters())


def test_a_finished_run_that_is_started_again_scores_its_average(tiny_run, fit, scored, tmp_path):
    run = tiny_run(*RUN)
    _, _, first = scored(fit, run, tmp_path)
    _, log, again = scored(fit, run, tmp_path)
    assert log.losses == {}
    assert all(tensor.equal(first[4][name]) for name, tensor in again[4].items())
