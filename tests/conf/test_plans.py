"""Every recipe and every arm of every experiment could run: planned from its config alone, no weight loaded."""

from __future__ import annotations

import itertools
import json
import shlex
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from beni.config.compose import compose
from beni.model.costing.table import propagate
from beni.paths import conf_dir
from beni.plan import main

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
OWN = {
    "wished": [
        "data=llava_instruct",
        "data.path=a.json",
        "data.images=pictures",
        "tracker.project=p",
        "tracker.entity=e",
    ]
}
"""What an experiment leaves to the user."""


def values(override: Override) -> list[str]:
    """``a=1,2`` is two overrides."""
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def arms(experiment: str) -> list[list[str]]:
    """The overrides of every run of an experiment file."""
    tree: dict[str, Any] = yaml.safe_load((conf_dir() / "experiment" / f"{experiment}.yaml").read_text())
    sweeper = tree.get("hydra", {}).get("sweeper", {})
    swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    products = itertools.product(*(values(one) for one in OverridesParser.create().parse_overrides(swept)))
    return [[*shlex.split(own), *more] for more in products for own in sweeper.get("arms") or [""]]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_planned(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"recipe={recipe}", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["visual_tokens"] > 0
    assert table["train_flops_per_sample"] >= table["prefill_flops"] > 0
    assert sum(row["trained"] for row in table["rows"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "arm"), [(name, arm) for name in EXPERIMENTS for arm in arms(name)])
def test_an_arm_of_an_experiment_can_be_run(experiment: str, arm: list[str]) -> None:
    model = propagate(compose([f"experiment={experiment}", *OWN.get(experiment, []), *arm]))
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_the_arms_of_a_sweep_are_told_apart() -> None:
    for name in EXPERIMENTS:
        folders = [tuple(sorted(arm)) for arm in arms(name)]
        assert len(set(folders)) == len(folders), name


def test_a_sweep_is_planned_arm_by_arm_as_it_would_run(capsys) -> None:
    assert main(["resampler=none,perceiver", "connector.depth=1,2", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [*plans] == [
        f"resampler={name} connector.depth={depth}" for name in ("none", "perceiver") for depth in (1, 2)
    ]
    assert main(["resampler=perceiver", "connector.depth=2", "--json"]) == 0
    assert plans["resampler=perceiver connector.depth=2"] == json.loads(capsys.readouterr().out)
    for name in ("resampler_pair", "zoo_shapes"):
        assert main([f"experiment={name}", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len({tuple(sorted(arm)) for arm in arms(name)})


def test_brackets_in_the_name_of_an_arm_are_printed(capsys) -> None:
    assert main(["adapter=lora", "train.plan.llm=lora", "adapter.targets=[q_proj,k_proj],[v_proj,o_proj]"]) == 0
    assert "adapter.targets=[q_proj,k_proj]" in " ".join(capsys.readouterr().out.split())


def test_an_arm_that_cannot_be_is_named_and_the_others_are_planned(capsys) -> None:
    assert main(["connector.depth=0,1"]) == 2
    shown = capsys.readouterr()
    assert "connector.depth=0\nCompositionError: E-DEPTH" in shown.err
    assert "connector.depth=1" in shown.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--world=64"], "train.batch_size=32 cannot be divided over 64 ranks x train.accumulation=1"),
        (["--text=9000"], "9009 positions with its visual tokens, the llm has 8192"),
        (["connector=glob(zzz*)"], "has no value to sweep over"),
    ],
)
def test_a_plan_refuses_what_a_run_would_refuse(arguments, says, capsys) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
