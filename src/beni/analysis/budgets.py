"""Did the arms of a study get the same amount of what they are to be compared at (``study.match``)?

Amounts are what the runs have measured: status.json and spec.json, not what was planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beni.runs.read import Arm, Run, number

QUANTITIES = {
    "tokens": "positions of the LLM",
    "train_flops": "training FLOPs",
    "prefill_flops": "prefill FLOPs",
    "steps": "steps",
    "params": "trained parameters",
}
"""Values of ``study.match`` and what they stand for."""

TOLERANCE = 0.02
"""Largest departure, as a share of the largest amount, at which arms still count as matched."""


@dataclass(frozen=True)
class Budgets:
    """What the arms of a study have consumed.

    Args:
        amounts: for each arm, quantity -> mean over its finished runs; None where nothing was written.
        match: quantity that the study declares equal; None where it declares none.
        notes: sentences for a reader; one that begins with ``NOT MATCHED`` says that the table is not a fair one.
    """

    amounts: tuple[Mapping[str, float | None], ...]
    match: str | None
    notes: tuple[str, ...]


def budgets_of(arms: Sequence[Arm]) -> Budgets:
    """Compares what the arms have consumed; arms without a finished run are left out of the verdict."""
    amounts = tuple(_mean([amounts_of(run) for run in arm.finished.values()]) for arm in arms)
    done = [(arm, amount) for arm, amount in zip(arms, amounts, strict=True) if arm.finished]
    declared = dict.fromkeys(_declared(run) for arm in arms for run in arm.runs)
    match = next((one for one in declared if one), None)
    notes = list(_verdict(match, done)) if match else []
    if len(declared) > 1:
        told = ", ".join(str(one or "null") for one in declared)
        notes.append(f"NOT MATCHED: the runs declare different matches (study.match={told}).")
    if not match and len(done) > 1:
        spreads = {name: _spread([amount[name] for _, amount in done]) for name in QUANTITIES}
        equal = [QUANTITIES[name] for name, spread in spreads.items() if spread is not None and spread <= TOLERANCE]
        other = [QUANTITIES[name] for name, spread in spreads.items() if spread is not None and spread > TOLERANCE]
        notes.append(
            f"The study declares no match (study.match=null). Equal over arms: {', '.join(equal) or 'nothing'}; "
            f"different: {', '.join(other) or 'nothing'}."
        )
    return Budgets(amounts, match, tuple(notes))


def amounts_of(run: Run) -> dict[str, float | None]:
    """Quantity -> how much of it a run has had."""
    config, spec = run.config.get("train") or {}, run.spec
    steps = number(run.status.get("step"))
    of_sample, of_step = number(spec.get("train_flops_per_sample")), number(run.status.get("flops/useful"))
    batch = of_step / of_sample if of_step and of_sample else number(config.get("batch_size"))
    positions = next((number(row.get("tokens")) for row in spec.get("rows") or () if row.get("stage") == "llm"), None)
    return {
        "tokens": _product(positions, batch, steps),
        "train_flops": _product(of_step, steps) if of_step else _product(of_sample, batch, steps),
        "prefill_flops": number(spec.get("prefill_flops")),
        "steps": steps,
        "params": number(run.trained_parameters()),
    }


def _verdict(match: str, done: Sequence[tuple[Arm, Mapping[str, float | None]]]):
    what = f"study.match={match}"
    if match not in QUANTITIES:
        yield f"NOT MATCHED: {what} is none of {', '.join(QUANTITIES)}."
        return
    known = [(arm, value) for arm, amount in done if (value := amount[match]) is not None]
    silent = [arm.label for arm, amount in done if amount[match] is None]
    if silent:
        yield f"NOT MATCHED: {what} cannot be checked for {', '.join(silent)}, which wrote no {QUANTITIES[match]}."
    spread = _spread([value for _, value in known])
    if spread is None:
        return
    if spread <= TOLERANCE:
        yield f"Matched: the {QUANTITIES[match]} of all arms are within {100 * spread:.1f} % ({what})."
        return
    (least, low), (most, high) = (end(known, key=lambda one: one[1]) for end in (min, max))
    yield (
        f"NOT MATCHED: {what}, but {QUANTITIES[match]} reach from {low:.4g} ({least.label}) to {high:.4g} "
        f"({most.label}), {100 * spread:.1f} % apart; expected at most {100 * TOLERANCE:.0f} %."
    )


def _declared(run: Run) -> str | None:
    return (run.config.get("study") or {}).get("match")


def _spread(values: Sequence[float | None]) -> float | None:
    """(largest - smallest) / largest; None with fewer than two, or where one is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(known) < len(values):
        return None
    return (max(known) - min(known)) / max(known) if max(known) > 0 else 0.0


def _mean(amounts: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    columns = {name: [one[name] for one in amounts] for name in QUANTITIES}
    known = {name: [value for value in column if value is not None] for name, column in columns.items()}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


def _product(*factors: float | None) -> float | None:
    product = 1.0
    for factor in factors:
        if factor is None:
            return None
        product *= factor
    return product
