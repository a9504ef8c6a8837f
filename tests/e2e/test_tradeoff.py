"""``beni.tradeoff``: a run's model beside the same weights with all visual tokens."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from beni.errors import ResumeError
from beni.evals.tradeoff import NOTHING, given_all_tokens
from beni.measure.latency import alternately, ratio
from beni.run import train
from beni.runs.frozen import load_frozen
from beni.tradeoff import main, tradeoff
from beni.trained import Trained

pytestmark = pytest.mark.slow

SMALL = ("train.steps=2", "optim.lr=1e-2", "checkpoint.every=0", "checkpoint.export=true", "eval.examples=2")
FINE = "vision.architecture.patch_size=6"
DEEP = ("llm.architecture.num_hidden_layers=4", "pruner=fastv", "pruner.layer=2")


@pytest.fixture
def finished(tiny_run):
    """finished(*overrides): the folder of a run of two steps."""
    return lambda *overrides: train(tiny_run(FINE, *SMALL, *overrides))


def test_a_budget_of_all_tokens_changes_nothing(finished):
    found = tradeoff(finished("selector=random", "selector.keep=1.0"), 4, 2, 2).measured
    assert (found.changed, found.examples) == (0, 4)
    assert found.scores[0] == found.scores[1]
    assert found.changed_interval[0] == 0.0 < found.changed_interval[1] < 1.0


def test_the_other_model_has_the_weights_and_all_tokens(finished, steps_of):
    folder = finished("selector=random", "selector.keep=2", *DEEP)
    reduced = Trained.load(folder).model
    whole = given_all_tokens(reduced, "it")
    assert all(tensor.equal(whole.state_dict()[name]) for name, tensor in reduced.state_dict().items())
    assert {group: whole.config.parts[group] for group in NOTHING} == NOTHING
    batch = steps_of(load_frozen(folder), whole)[0][0]
    with torch.no_grad():
        ours, theirs = (model(**batch.model_inputs()).loss for model in (reduced, whole))
    assert ours != theirs


@pytest.mark.parametrize(
    "overrides", [("selector=random", "selector.keep=2"), DEEP, ("selector=pool", "selector.keep=4")]
)
def test_the_table_and_the_json_tell_tokens_flops_time_scores_and_answers(finished, capsys, overrides):
    folder = finished(*overrides)
    assert main([str(folder), "--examples=4", "--rounds=2", "--new-tokens=2"]) == 0
    shown = capsys.readouterr().out
    for name in ("visual tokens", "prefill FLOPs", "prefill ", "decoding, a token", "changed answers", "of 4"):
        assert name in shown
    assert main([str(folder), "--examples=4", "--rounds=2", "--new-tokens=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["taken_out"] == {
        overrides[-1].split(".")[0]: overrides[-2 if len(overrides) == 3 else 0].split("=")[1]
    }
    assert found["prefill_flops"][0] < found["prefill_flops"][1]
    assert found["visual_tokens"][1] == 16
    assert all(len(seconds) == 2 for seconds in (*found["prefill"], *found["decoding"]))


def test_what_cannot_be_compared_is_refused(finished, capsys):
    assert main([str(finished())]) == 2
    assert "nothing is taken out" in capsys.readouterr().err
    assert main([str(finished("selector=random")), "--rounds=0"]) == 2
    assert "--rounds=0, expected at least 1" in capsys.readouterr().err


def test_a_run_without_a_saved_model_is_compared_by_its_newest_checkpoint(finished):
    kept = finished("selector=random", "selector.keep=1.0", "train.ema=0.5", "optim.warmup_ratio=0")
    found = tradeoff(kept, 4, 2, 2).measured
    (kept / "model").rename(kept / "elsewhere")
    again = tradeoff(kept, 4, 2, 2).measured
    assert (again.changed, again.scores) == (0, found.scores)
    assert again.scores[0] == again.scores[1]


def test_all_tokens_have_the_types_of_the_weights(finished):
    bf16 = ("compute.precision=bf16", "train.plan.vision=frozen", "checkpoint.export=false")
    reduced = Trained.load(finished("selector=random", "selector.keep=2", *bf16)).model
    whole = given_all_tokens(reduced, "it")
    types = {name: parameter.dtype for name, parameter in reduced.named_parameters()}
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert {name: parameter.dtype for name, parameter in whole.named_parameters()} == types


def test_weights_that_are_for_fewer_tokens_are_named(finished):
    reduced = Trained.load(finished("selector=random", "selector.keep=2")).model
    weight = reduced.connector.state_dict()
    name = next(name for name, tensor in weight.items() if tensor.ndim == 2)
    module, _, last = name.rpartition(".")
    setattr(reduced.connector.get_submodule(module), last, torch.nn.Parameter(weight[name][:, 1:].clone()))
    with pytest.raises(ResumeError, match=f"runs/it: the weights of connector are .* such as connector.{name}"):
        given_all_tokens(reduced, "runs/it")


def test_a_run_whose_template_was_edited_is_refused(finished, capsys):
    folder = finished("selector=random")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["template"]["system"] = "Be brief."
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert "Be brief." in error.split("the prompt as given")[1]


def test_calls_take_turns_and_every_second_round_is_turned_round():
    called = []
    seconds = alternately({name: lambda name=name: called.append(name) for name in "ab"}, rounds=2, warmup=1)
    assert "".join(called) == "abbaab"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_a_ratio_is_that_of_each_round():
    found = ratio([2.0, 4.0, 60.0], [1.0, 2.0, 20.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 3.0)
