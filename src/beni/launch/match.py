"""Matched budgets (``study.match``): before the arms of a sweep are frozen, one integer of each is chosen such that all
get the same amount of tokens, FLOPs, steps or parameters.

The budget is ``study.budget``, or what the first arm has as it is configured. Amounts come from whoever can plan a run
(``job --check``); here they are numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

from beni.config.compose import freeze
from beni.config.sections.study import STEPS, value_of
from beni.errors import BeniError, ConfigError
from beni.launch.estimate import Judged
from beni.runs.identity import difference, relevant

TOLD, REFUSED = 0.01, 0.1
"""Shares of the budget: an arm that is farther from it is pointed out, and refused."""

LOOKS = 64
"""Most values of a key that are tried."""
STRIDE = 32
"""How far beside one that can be a value is looked for: of some keys only squares can be."""
SHOWN = 30
"""Arms whose solution is told."""

Amount = Callable[[Mapping[str, Any]], float]
"""A run -> its amount of what ``study.match`` names."""


@dataclass(frozen=True)
class Solution:
    """An arm that meets the budget.

    Attributes:
        run: with the value that was chosen.
        value: of ``study.solve``; None where the arm was left as it is.
        amount: that the arm has.
        budget: that it was to have.
    """

    run: dict[str, Any]
    value: int | None
    amount: float
    budget: float


def is_matched(run: Mapping[str, Any]) -> bool:
    """Whether a run asks for a matched budget."""
    return run["study"]["match"] is not None


def to_check(runs: Sequence[dict[str, Any]], arms: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Runs as they are handed to ``check_arms``: where there is a budget, a value that an arm sets itself is kept.

    Args:
        arms: overrides of each run.

    Raises:
        ConfigError: when the arms name several budgets, or set what is solved for though the first arm has the budget.
    """
    asked = {(run["study"]["match"], run["study"]["budget"]) for run in runs}
    if asked == {(None, None)} or not any(is_matched(run) for run in runs):
        return list(runs)
    if len(asked) > 1:
        said = " and ".join(f"study.match={match} study.budget={budget}" for match, budget in sorted(asked, key=str))
        raise ConfigError(
            f"the arms of one sweep have one budget, and these have {said}\n"
            "  fix: set study.match and study.budget once, outside of arms and swept values"
        )
    own = [_sets(arm, run["study"]["solve"]) for run, arm in zip(runs, arms, strict=True)]
    if runs[0]["study"]["budget"] is not None:
        kept = ({**run, "study": {**run["study"], "solve": None}} for run in runs)
        return [left if sets else run for run, left, sets in zip(runs, kept, own, strict=True)]
    _require_unset(runs, arms, own)
    return list(runs)


def _require_unset(runs: Sequence[dict[str, Any]], arms: Sequence[Sequence[str]], own: Sequence[bool]) -> None:
    """Return when no arm sets a value that is solved for; those of all arms are the first arm's."""
    wrong = []
    for run, arm, name, sets in zip(runs, arms, names(arms), own, strict=True):
        key = run["study"]["solve"]
        if sets and value_of(run, key) != value_of(runs[0], key):
            wrong.append(f"{name or ' '.join(arm)} ({key}={value_of(run, key)})")
    if wrong:
        shown = "; ".join(list(dict.fromkeys(wrong))[:5])
        raise ConfigError(
            f"study.match={runs[0]['study']['match']} chooses the value that these arms set themselves: {shown}\n"
            "  fix: leave it out of them, or set study.solve=null in them to have them as they are, or name a "
            "study.budget, which such an arm is then held to"
        )


def _sets(arm: Sequence[str], key: str | None) -> bool:
    return key is not None and any(word.lstrip("+").partition("=")[0] == key for word in arm)


def solve(runs: Sequence[dict[str, Any]], amount_of: Amount) -> list[Solution | BeniError]:
    """Chooses the value of ``study.solve`` of every run, or says why there is none.

    Args:
        runs: of one sweep, the one that the budget comes from first; each with the same ``study.match``.
        amount_of: how much of it a run has; raises BeniError for a run that cannot be.
    """
    try:
        budget = runs[0]["study"]["budget"] or amount_of(runs[0])
    except BeniError as error:
        return [error for _ in runs]
    return [_solved(run, budget, amount_of) for run in runs]


def _solved(run: dict[str, Any], budget: float, amount_of: Amount) -> Solution | BeniError:
    study = run["study"]
    match, key, value = study["match"], study["solve"], None
    try:
        if key is None:
            amount = amount_of(run)
        else:
            value, amount = nearest(lambda n: amount_of(with_value(run, key, n)), value_of(run, key), budget)
    except BeniError as error:
        return error
    off = amount / budget - 1
    if abs(off) > (0 if match == "steps" and value is None else REFUSED):
        if value is None:
            has, fix = "as it is, the arm has", "leave out what the arm sets itself and name it in study.solve"
        else:
            has, fix = f"nearest is {key}={value}, which has", "name another integer of this arm in study.solve"
        return ConfigError(
            f"study.match={match}: {has} {amount:.6g}, {_percent(off)} the budget of {budget:.6g}\n"
            f"  fix: {fix}, or set another study.budget"
        )
    return Solution(run if key is None or value is None else with_value(run, key, value), value, amount, budget)


def nearest(amount_at: Callable[[int], float], start: int, budget: float) -> tuple[int, float]:
    """The positive integer whose amount is nearest to ``budget``, and that amount, which rises or falls with it.

    Args:
        amount_at: raises BeniError for a value that cannot be.
        start: a value that can be; the nearer it is, the fewer are tried.

    Raises:
        BeniError: when ``start`` cannot be.
    """
    tried: dict[int, float | None] = {start: amount_at(start)}
    while len(tried) < LOOKS and (value := _next(tried, start, budget)) is not None:
        try:
            tried[value] = amount_at(value)
        except BeniError:
            tried[value] = None
    known = {value: amount for value, amount in tried.items() if amount is not None}
    best = min(known, key=lambda value: (abs(known[value] - budget), abs(value - start)))
    return best, known[best]


def _next(tried: Mapping[int, float | None], start: int, budget: float) -> int | None:
    """The next value to try; None where no other can be nearer."""
    known = sorted((value, amount) for value, amount in tried.items() if amount is not None)
    if any(amount == budget for _, amount in known):
        return None
    for (low, below), (high, above) in pairwise(known):
        if (below < budget) != (above < budget):
            share = 0.5 if len(tried) % 3 == 0 else (budget - below) / (above - below)  # halves in turn, to get there
            return _beside(low + round((high - low) * share), low, high, tried)
    if len(known) == 1:
        doubled = (round(start * budget / known[0][1]) if known[0][1] else start, 2 * start, start // 2)
        return _first([*doubled, *(start + sign * n for n in range(1, STRIDE) for sign in (1, -1))], tried)
    if known[0][1] == known[-1][1]:
        return None  # the value changes nothing
    upwards = (known[-1][1] > known[0][1]) == (budget > known[-1][1])
    (behind, before), (edge, last) = known[-2:] if upwards else known[1::-1]
    slope = (last - before) / (edge - behind)
    target = edge + round((budget - last) / slope) if slope else 2 * edge
    return _beyond(edge, min(max(target, edge // 8), 8 * edge), 1 if upwards else -1, tried)


def _beyond(edge: int, target: int, way: int, tried: Mapping[int, float | None]) -> int | None:
    """A value on the far side of ``edge``: the target, one beside it, one on the way to it, or one beside the edge."""
    beside = [target + sign * n for n in range(1, STRIDE // 4) for sign in (-way, way)]
    halves = [edge + (target - edge) // 2**n for n in range(1, 8)]
    wanted = [target, *beside, *halves, *(edge + way * n for n in range(1, STRIDE))]
    return _first([value for value in wanted if (value - edge) * way > 0], tried)


def _first(values: Sequence[int], tried: Mapping[int, float | None]) -> int | None:
    return next((value for value in values if value >= 1 and value not in tried), None)


def _beside(target: int, low: int, high: int, tried: Mapping[int, float | None]) -> int | None:
    """The value between two others, nearest to ``target``, that has not been tried."""
    target = min(max(target, low + 1), high - 1)
    for distance in range(high - low):
        for value in (target - distance, target + distance):
            if low < value < high and value not in tried:
                return value
    return None


def with_value(run: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A run with another value of a dotted key; the one that is given stays as it is."""
    name, _, rest = key.partition(".")
    return {**run, name: with_value(run[name], rest, value) if rest else value}


def settled(config: DictConfig, hydra: DictConfig, run: dict[str, Any], found: Judged) -> dict[str, Any]:
    """The run that is frozen: composed anew with the value that was chosen, and the budget as a number.

    Args:
        config: that ``run`` was frozen of; it is changed.
        hydra: Hydra's own node of it.

    Raises:
        ConfigError: when the value cannot be, or others follow it, so that it was chosen for another run.
    """
    if "matched" not in found:
        return run
    key = run["study"]["solve"]
    for name, value in chosen(run, found).items():
        OmegaConf.update(config, name, value)
    new = freeze(config, hydra)
    follow = [line for line in difference(relevant(run), relevant(new)) if not line.startswith(f"{key}: ")]
    if follow and key != STEPS:
        raise ConfigError(
            f"study.solve={key}: other values follow it ({'; '.join(follow)})\n  fix: set them to plain values"
        )
    return new


def chosen(run: Mapping[str, Any], found: Judged) -> dict[str, Any]:
    """Key -> the value by which the run that is frozen differs from the composed one; none without a match."""
    if (matched := found.get("matched")) is None:
        return {}
    value = {} if matched["value"] is None else {run["study"]["solve"]: matched["value"]}
    return {"study.budget": matched["budget"]} | value


def names(arms: Sequence[Sequence[str]]) -> list[str]:
    """What each arm says that not all do, without its seed."""
    counts = Counter(word for arm in arms for word in set(arm))
    shared = {word for word, count in counts.items() if count == len(arms)}
    return [" ".join(word for word in arm if word not in shared and not word.startswith("train.seed=")) for arm in arms]


def told(runs: Sequence[Mapping[str, Any]], arms: Sequence[Sequence[str]], found: Sequence[Judged]) -> list[str]:
    """Lines about the budget and what was chosen for each arm, those that miss it by more than 1 % first."""
    from beni.analysis import formats

    lines: dict[str, float] = {}
    head = ""
    for run, name, one in zip(runs, names(arms), found, strict=True):
        if (matched := one.get("matched")) is None:
            continue
        head = f"study.match={run['study']['match']}: {formats.count(matched['budget'])} for every arm"
        off, value = matched["amount"] / matched["budget"] - 1, matched["value"]
        what = "as it is" if value is None else f"{run['study']['solve']}={value}"
        far = f", {_percent(off)} the budget" if abs(off) > TOLD else ""
        lines[f"  {f'{name}: ' if name else ''}{what}{far}"] = abs(off)
    if not lines:
        return []
    ordered = sorted(lines, key=lambda line: lines[line] <= TOLD)
    more = [f"  and {len(ordered) - SHOWN} more"] if len(ordered) > SHOWN else []
    return [head, *ordered[:SHOWN], *more]


def _percent(off: float) -> str:
    return f"{abs(off):.1%} {'above' if off > 0 else 'below'}"
