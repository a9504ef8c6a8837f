"""Matched budgets: which value is chosen, for which arms, and what is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from beni.config.compose import composing, freeze
from beni.errors import BeniError, ConfigError
from beni.launch import job, match
from beni.launch.match import Solution, nearest, settled, solve, to_check, with_value
from beni.model.costing.bill import Bill
from beni.plan import main as plan
from beni.runs.identity import signature
from support.processes import run_module

Runs = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("amount_at", "start", "budget", "best"),
    [
        (lambda n: 7.0 * n, 100, 7.0 * 100, 100),
        (lambda n: 7.0 * n, 100, 7000.0, 1000),
        (lambda n: 7.0 * n, 100, 17.4, 2),
        (lambda n: 7.0 * n, 100, 17.6, 3),
        (lambda n: 1e6 + n * n, 64, 1e6 + 300**2, 300),
        (lambda n: 1e6 + n * n, 64, 1e6 + 3.4**2, 3),
        (lambda n: 1e6 / n, 4, 1e5, 10),  # falls
        (lambda n: 1e6 / n, 4, 1e6, 1),
        (lambda n: 5.0, 4, 9.0, 4),  # changes nothing
        (lambda n: 1e12 + 1e9 * n, 2800, 1e12 + 1e9 * 4711, 4711),
    ],
)
def test_the_nearest_integer_is_found_in_few_looks(
    amount_at: Callable[[int], float], start: int, budget: float, best: int
) -> None:
    looks = []

    def looked(value: int) -> float:
        looks.append(value)
        return amount_at(value)

    assert nearest(looked, start, budget) == (best, amount_at(best))
    assert len(looks) == len(set(looks)) <= 24


def test_values_that_cannot_be_are_passed_over() -> None:
    """Squares alone, up to 400."""

    def amount_at(value: int) -> float:
        if value > 400 or round(value**0.5) ** 2 != value:
            raise ConfigError(f"{value} is no square")
        return 1000.0 + value

    assert nearest(amount_at, 16, 1105.0) == (100, 1100.0)
    assert nearest(amount_at, 16, 1007.0)[0] == 9
    assert nearest(lambda n: amount_at(n * n if n < 13 else 2), 4, 9000.0)[0] == 12
    with pytest.raises(ConfigError, match="17 is no square"):
        nearest(amount_at, 17, 1105.0)


@pytest.mark.parametrize("start", [1, 7, 100, 4096])
@pytest.mark.parametrize("wanted", [1, 2, 63, 64, 65, 1000, 3999])
def test_every_value_is_found_from_any_start(start: int, wanted: int) -> None:
    assert nearest(lambda n: 3.0 * n**2 + n, start, 3.0 * wanted**2 + wanted)[0] == wanted


def test_a_value_is_set_without_changing_the_run(tiny_run: Runs) -> None:
    run = tiny_run()
    other = with_value(run, "vision.architecture.patch_size", 3)
    assert (other["vision"]["architecture"]["patch_size"], run["vision"]["architecture"]["patch_size"]) == (3, 12)
    assert with_value(other, "vision.architecture.patch_size", 12) == run


ARMS = (
    ("resampler=none",),
    ("resampler=avg_pool", "resampler.side=1"),
    ("resampler=perceiver", "resampler.depth=1"),
    ("resampler=none", "train.thaw.llm=0.3"),
)
MATCHED = ("study.match=train_flops", "train.steps=500")


@pytest.fixture
def amount_of() -> match.Amount:
    return job._amounts()


def test_every_arm_has_the_flops_of_the_first_within_half_a_step(tiny_run: Runs, amount_of: match.Amount) -> None:
    runs = [tiny_run(*MATCHED, *arm, f"train.seed={seed}") for arm in ARMS for seed in (0, 1)]
    solutions = [one for one in solve(runs, amount_of) if isinstance(one, Solution)]
    assert len(solutions) == len(runs)
    budget = amount_of(runs[0])
    for run, one in zip(runs, solutions, strict=True):
        assert one.budget == budget
        assert one.amount == amount_of(one.run)
        steps = one.run["train"]["steps"]
        one_more = amount_of(with_value(run, "train.steps", steps + 1)) - one.amount
        assert abs(one.amount - budget) <= one_more / 2
    values = [one.value for one in solutions]
    assert values[::2] == values[1::2], "seeds have the same"
    assert values[0] == 500 < min(values[2], values[6])
    assert len(set(values)) == 4


def test_a_phase_of_freezing_is_billed_as_it_is_trained() -> None:
    bill = Bill(samples=8, positions=20, trained=5, prefill_flops=3, phases=((0.0, 10), (0.25, 30)))
    assert bill.train_flops(4) == 8 * (10 + 3 * 30)
    assert bill.train_flops(5) == 8 * (2 * 10 + 3 * 30)
    assert [bill.amount(name, 4) for name in ("tokens", "train_flops", "prefill_flops", "steps", "params")] == [
        *(640, 800, 3, 4, 5)
    ]
    with pytest.raises(ConfigError, match=r"fix: set study\.match=train_flops"):
        Bill(8, None, 5, 3, ((0.0, 10),)).amount("tokens", 4)


def test_tokens_are_those_of_the_llm(tiny_run: Runs, amount_of: match.Amount) -> None:
    """Pooling four visual tokens to one leaves three positions fewer in each sample."""
    of_all, of_one = (amount_of(tiny_run("study.match=tokens", *arm)) for arm in ARMS[:2])
    assert of_all - of_one == 3 * 8 * 2
    steps = [one.value for one in solve([tiny_run("study.match=tokens", *arm) for arm in ARMS[:2]], amount_of)]  # type: ignore[union-attr]
    assert steps[0] == 2


def test_the_bill_is_that_of_the_spec_table_of_the_run(tiny_run: Runs, amount_of: match.Amount) -> None:
    from beni.run import train

    run = tiny_run("study.match=train_flops")
    table = json.loads((train(run) / "spec.json").read_text())
    assert amount_of(run) == table["train_flops_per_sample"] * 2 * 8
    assert amount_of(with_value(run, "study.match", "prefill_flops")) == table["prefill_flops"]
    assert amount_of(with_value(run, "study.match", "params")) == sum(row["trained"] for row in table["rows"])


def test_another_integer_of_an_arm_is_solved_for(tiny_run: Runs, amount_of: match.Amount) -> None:
    base = ("study.match=prefill_flops", "study.solve=resampler.num_latents", "resampler=perceiver")
    few, many = (
        tiny_run(*base, "resampler.num_latents=24", "resampler.depth=3"),
        tiny_run(*base, "resampler.num_latents=7", "resampler.depth=1"),
    )
    first, second = solve([few, many], amount_of)
    assert isinstance(first, Solution)
    assert isinstance(second, Solution)
    assert first.value == 24
    assert second.run["resampler"]["num_latents"] == second.value > 24
    around = [
        abs(amount_of(with_value(many, "resampler.num_latents", second.value + n)) - first.amount) for n in (-1, 1)
    ]
    assert abs(second.amount - first.amount) < min(around)


def test_an_arm_with_nothing_near_is_refused_with_the_nearest(tiny_run: Runs, amount_of: match.Amount) -> None:
    base = ("study.match=params", "resampler=avg_pool")
    first = tiny_run(*base, "study.solve=resampler.side")
    second = tiny_run("study.match=params", "study.solve=null", "llm.architecture.num_hidden_layers=1")
    _, refused = solve([first, second], amount_of)
    assert isinstance(refused, ConfigError)
    assert str(refused).startswith("study.match=params: as it is, the arm has ")
    assert "below the budget" in str(refused)
    first["study"]["budget"] = 10.0
    [refused] = solve([first], amount_of)
    assert str(refused).startswith("study.match=params: nearest is resampler.side=")
    assert "fix: name another integer" in str(refused)


def test_an_impossible_arm_keeps_its_own_reason(tiny_run: Runs) -> None:
    def amount_of(run: Mapping[str, Any]) -> float:
        if run["train"]["seed"]:
            raise ConfigError("cannot be")
        return 3.0 * run["train"]["steps"]

    fine, bad = (tiny_run("study.match=train_flops", f"train.seed={seed}") for seed in (0, 1))
    assert [str(one) for one in solve([fine, bad], amount_of) if isinstance(one, BeniError)] == ["cannot be"]
    assert [str(one) for one in solve([bad, fine], amount_of)] == ["cannot be", "cannot be"]


def test_arms_that_set_what_is_solved_for_are_refused_and_named(tiny_run: Runs) -> None:
    arms = [["resampler=none"], ["resampler=avg_pool", "train.steps=7"], ["resampler=avg_pool", "train.steps=7"]]
    for name in ("tokens", "train_flops", "steps"):
        runs = [tiny_run(f"study.match={name}", *arm) for arm in arms]
        with pytest.raises(ConfigError, match=r"(?s)resampler=avg_pool train.steps=7 \(train.steps=7\)\n  fix: leave"):
            to_check(runs, arms)
    everywhere = [["train.steps=7", *arm] for arm in arms]
    runs = [tiny_run("study.match=tokens", *arm) for arm in everywhere]
    assert to_check(runs, everywhere) == runs, "the command line said it of all"
    free = [tiny_run(*arm) for arm in arms]
    assert to_check(free, arms) == free


def test_with_a_budget_a_value_that_is_set_is_kept_if_it_meets_it(tiny_run: Runs) -> None:
    words = ["study.match=train_flops", "study.budget=1000", "train.steps=95"]
    [run] = to_check([tiny_run(*words)], [words])
    [kept] = solve([run], lambda run: 10.0 * run["train"]["steps"])
    assert isinstance(kept, Solution)
    assert (kept.value, kept.amount, kept.budget) == (None, 950.0, 1000)
    [refused] = solve([with_value(run, "train.steps", 85)], lambda run: 10.0 * run["train"]["steps"])
    assert "as it is, the arm has 850, 15.0% below the budget of 1000" in str(refused)
    [inexact] = solve([with_value(run, "study.match", "steps")], lambda run: run["train"]["steps"])
    assert isinstance(inexact, ConfigError)


def test_arms_with_several_budgets_are_refused(tiny_run: Runs) -> None:
    arms = [["study.match=tokens"], ["study.match=steps"]]
    with pytest.raises(ConfigError, match=r"(?s)study.match=steps.* and study.match=tokens.*fix: set study.match"):
        to_check([tiny_run(*arm) for arm in arms], arms)


def test_what_misses_the_budget_is_told_first() -> None:
    arms = [["a=1", "all=1", f"train.seed={seed}"] for seed in (0, 1)] + [["a=2", "all=1", "train.seed=0"]]
    runs = [{"study": {"match": "tokens", "solve": "train.steps"}}] * 3
    judged: Any = [{"matched": {"budget": 1000, "amount": 1001, "value": 3}}] * 2
    judged += [{"matched": {"budget": 1000, "amount": 950, "value": None}}]
    assert match.told(runs, arms, judged) == [
        "study.match=tokens: 1,000 for every arm",
        "  a=2: as it is, 5.0% below the budget",
        "  a=1: train.steps=3",
    ]


def judged(value: int) -> Any:
    return {"problem": None, "matched": {"budget": 10, "amount": 10.0, "value": value}}


def composed(words: list[str], found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run before and after what was chosen is written into it."""
    with composing() as composed_of:
        config = composed_of(words)
    run = freeze(config, config.hydra)
    return run, settled(config, config.hydra, run, found)


def test_what_follows_the_steps_is_composed_anew(tiny_values: list[str]) -> None:
    words = [*tiny_values, "study.match=train_flops", "checkpoint.every=${train.steps}"]
    run, new = composed(words, judged(7))
    assert (run["train"]["steps"], run["checkpoint"]["every"], run["study"]["budget"]) == (2, 2, None)
    assert (new["train"]["steps"], new["checkpoint"]["every"], new["study"]["budget"]) == (7, 7, 10)
    assert signature(new) == signature(with_value(run, "train.steps", 7))
    run, new = composed(words, {"problem": None})
    assert run is new


def test_values_that_follow_another_integer_are_refused(tiny_values: list[str]) -> None:
    words = [*tiny_values, "study.match=tokens", "study.solve=train.batch_size", "data.heldout=${train.batch_size}"]
    with pytest.raises(
        ConfigError, match=r"study\.solve=train\.batch_size: other values follow it \(data\.heldout: 8 -> 9\)"
    ):
        composed(words, judged(9))


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_matched_sweep_is_found_again_and_each_run_repeats_from_its_command(
    tmp_path: Path, tiny_values: list[str]
) -> None:
    own = [word for word in tiny_values if not word.startswith("train.steps=")]
    matched = ("study.name=pair", "study.match=train_flops", "train.steps=250", "checkpoint.every=0")
    sweep = (*own, *matched, "resampler=none,perceiver", "train.seed=0,1")

    def train(*arguments: str) -> str:
        done = run_module("beni.train", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def frozen() -> dict[Path, dict[str, Any]]:
        found = sorted((tmp_path / "runs" / "pair").glob("*/config.yaml"))
        return {path.parent: yaml.safe_load(path.read_text()) for path in found}

    assert "study.match=train_flops: " in train("-m", *sweep)
    runs = frozen()
    steps = {(run["choices"]["resampler"], run["train"]["steps"]) for run in runs.values()}
    assert (len(runs), len(steps)) == (4, 2)
    assert ("none", 250) in steps
    [(named, budget)] = {(run["study"]["match"], run["study"]["budget"]) for run in runs.values()}
    assert named == "train_flops"

    assert "4 of 4 runs have finished before" in train("-m", *sweep)
    for folder, run in [one for one in runs.items() if one[1]["choices"]["resampler"] != "none"][:1]:
        command = shlex.split(json.loads((folder / "identity.json").read_text())["command"])
        assert command[:3] == ["python", "-m", "beni.train"]
        assert command[-2:] == [f"study.budget={budget}", f"train.steps={run['train']['steps']}"]
        train(*command[3:])
    assert frozen() == runs

    later = [word for word in own if not word.startswith("train.seed=")]
    train(*later, *matched[:2], "checkpoint.every=0", "resampler=perceiver", "train.seed=1", f"study.budget={budget}")
    assert frozen() == runs, "the budget alone leads to the same run"


def test_a_plan_of_a_sweep_has_the_steps_that_were_chosen(
    tiny_values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_values, "train.steps=500", "study.match=train_flops"]
    assert plan([*words, "resampler=none,perceiver", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["resampler=none"]["steps"] == 500
    assert found["resampler=perceiver"]["steps"] < 500
    assert "resampler=perceiver: train.steps=" in told.err
    assert plan([*words, "resampler=none,perceiver"]) == 0
    assert " 500 " in capsys.readouterr().out
    assert plan([*tiny_values, "study.match=params", "study.solve=null", "resampler=none,perceiver"]) == 2
    assert "study.match=params: as it is, the arm has " in capsys.readouterr().err
