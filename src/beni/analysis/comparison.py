"""One study as one table: every arm's score, its paired difference to the baseline, the proof of pairing, its cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beni.analysis import variants
from beni.analysis.inference import FEWEST, LEVEL
from beni.analysis.pairing import Pairing, prove_pairing
from beni.analysis.ranking import ranked
from beni.analysis.stats import (
    Difference,
    Summary,
    corrected,
    metric_value,
    paired_difference,
    summarize,
    variant_metric,
)
from beni.errors import BeniError
from beni.runs.read import Arm, Fates, Run, arms, collect_study, number

ACCURACY, LOSS = "eval/accuracy", "eval/loss"


@dataclass(frozen=True)
class Cost:
    """What an arm costs; means over its finished runs, peak memory the largest. ``None`` where nothing was written."""

    visual_tokens: float | None
    trained_parameters: float | None
    train_flops_per_sample: float | None
    prefill_flops: float | None
    seconds: float | None
    samples_per_s: float | None
    mfu: float | None
    peak_memory_gib: float | None


@dataclass(frozen=True)
class Row:
    """One arm. ``difference`` and ``pairing`` are ``None`` for the baseline itself; ``ablations`` has its scores on
    changed pictures.
    """

    arm: Arm
    score: Summary
    blank: Summary
    chance: float | None
    difference: Difference | None
    pairing: Pairing | None
    cost: Cost
    ablations: tuple[variants.Variant, ...] = ()

    @property
    def fair(self) -> bool:
        """Whether it is the baseline, or proven to differ from it in nothing but its settings."""
        return self.pairing is None or self.pairing.verdict == "yes"

    @property
    def seeds(self) -> str:
        """``2/3`` finished, with what became of the rest: ``1/3 (1 failed, 1 running)``."""
        others: dict[str, int] = {}
        for run in self.arm.runs:
            if run.state != "finished":
                others[run.state] = others.get(run.state, 0) + 1
        rest = ", ".join(f"{count} {state}" for state, count in others.items())
        return f"{len(self.arm.finished)}/{len({run.seed for run in self.arm.runs})}" + (f" ({rest})" if rest else "")


@dataclass(frozen=True)
class Comparison:
    """A study compared on one metric.

    Args:
        notes: the sentences a reader needs before the numbers.
        ranking: groups of arm labels, the best first; not all arms of one group can be told apart, any two of different
            groups can. ``None`` where the noise supports no such order, or nothing says how large it is. Arms that
            are not proven to be paired (``Row.fair``) have no place in it.
    """

    folder: Path
    metric: str
    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    ranking: tuple[tuple[str, ...], ...] | None = None

    @property
    def damaged(self) -> list[tuple[str, Run]]:
        """(arm label, run) of every run of which something is missing or cannot be right (``Run.damage``)."""
        return [(row.arm.label, run) for row in self.rows for run in row.arm.runs if run.damage]

    @property
    def unfinished(self) -> list[tuple[str, Run]]:
        """(arm label, run) of every run that has no final score."""
        return [(row.arm.label, run) for row in self.rows for run in row.arm.runs if run.state != "finished"]


def compare_study(
    folder: Path | str, *, baseline: str | None = None, metric: str | None = None, fates: Fates | None = None
) -> Comparison:
    """Reads ``runs/<study>`` and compares its arms.

    Args:
        baseline: label of the arm to compare with; None takes the first of the sweep that has a finished run.
        metric: a key of metrics.jsonl; None takes the accuracy, and the held-out loss where no finished run has one.
        fates: what became of the runs (launch/states.py); None believes each status.json.

    Raises:
        BeniError: no such study, no such baseline arm, or a metric that no finished run has.
    """
    runs = collect_study(folder, fates)
    groups = arms(runs)
    reference = _find(groups, baseline)
    finished = [run for arm in groups for run in arm.finished.values()]
    fallen_back = metric is None and bool(finished) and not any(_has(run, ACCURACY) for run in finished)
    metric = metric or (LOSS if fallen_back else ACCURACY)
    if finished and all(metric_value(run, metric) is None for run in finished):
        known = sorted({key for run in finished for row in run.metrics for key in row if "/" in key})
        raise BeniError(f"--metric {metric}: no finished run has it; expected one of {', '.join(known) or '(none)'}")
    rows = []
    others = [arm for arm in groups if arm is not reference]
    paired = corrected([paired_difference(arm, reference, metric) for arm in others])
    differences = dict(zip((arm.label for arm in others), paired, strict=True))
    wanted = variants.names(groups)
    for arm in groups:
        own = arm is reference
        rows.append(
            Row(
                arm=arm,
                score=summarize(arm, metric),
                blank=summarize(arm, variant_metric(metric, "blank")),
                chance=summarize(arm, "eval/chance").mean,
                difference=differences.get(arm.label),
                pairing=None if own else prove_pairing(arm, reference),
                cost=_cost(arm),
                ablations=tuple(variants.scores(arm, metric, wanted)),
            )
        )
    notes = [f"No run has {ACCURACY}: compared by {LOSS} (lower is better)."] if fallen_back else []
    notes += _hypotheses(runs)
    ranking = ranked([row.arm for row in rows if row.fair], metric)
    return Comparison(Path(folder), metric, reference.label, tuple(rows), (*notes, *_notes(rows)), ranking)


def _has(run: Run, metric: str) -> bool:
    return metric_value(run, metric) is not None


def _hypotheses(runs: Iterable[Run]) -> list[str]:
    """What the experiments of the runs were to show, each once."""
    texts = dict.fromkeys(run.hypothesis for run in runs)
    return [text if text.startswith("Question:") else f"Hypothesis: {text}" for text in texts if text]


def _notes(rows: list[Row]) -> Iterable[str]:
    finished = [len(row.arm.finished) for row in rows]
    damaged = [run for row in rows for run in row.arm.runs if run.damage]
    if damaged:
        yield f"DAMAGED: {len(damaged)} of the runs; details and what is left out are listed below."
    for row in rows:
        if row.difference is not None and row.difference.unmatched and row.difference.pairs:
            both = row.difference.pairs + row.difference.unmatched
            yield f"INCOMPLETE: {row.arm.label} pairs {row.difference.pairs} of {both} scored examples."
    if not any(finished):
        yield "No run of this study has finished: there is nothing to compare yet."
    elif max(finished) == 1:
        yield "One seed per arm: the differences hold for this seed; the variation between seeds is unknown."
    else:
        if max(finished) == 2:
            yield (
                "Two seeds per arm: a standard deviation of two values, even 0.000, says next to nothing about the "
                "variation between seeds; use three or more (train.seed=0,1,2)."
            )
        yield (
            "Score: mean ± standard deviation over seeds. "
            "Difference: paired by seed and example, ± standard error clustered by seed."
        )
        yield from _reach([row.difference for row in rows if row.difference is not None])
    dropped = [row.arm.label for row in rows if any(run.state == "dropped" for run in row.arm.runs)]
    if dropped:
        yield (
            f"DROPPED by study.stop: {', '.join(dropped)}; they have fewer seeds, and are paired over those they have."
        )
    for row in rows:
        if row.pairing is not None and row.pairing.verdict == "confounded":
            yield f"CONFOUNDED: {row.arm.label} differs from the baseline in more than its overrides."
    twice = [row.arm.label for row in rows if len({run.seed for run in row.arm.runs}) < len(row.arm.runs)]
    if twice:
        yield f"A seed was run more than once in {', '.join(twice)}; the latest finished run is used."


def _reach(differences: list[Difference]) -> Iterable[str]:
    """What the sign-flip test cannot show with so few seeds."""
    tested = [len(one.per_seed) for one in differences if one.p is not None]
    if not tested:
        return
    if (seeds := max(tested)) < FEWEST:
        yield (
            f"{seeds} paired seeds: the sign-flip test cannot reach p = {LEVEL} (smallest p {2 / 2**seeds:g}); "
            f"use {FEWEST} or more. No true difference is large enough to be supported, so no MDE is given."
        )


def _find(groups: list[Arm], wanted: str | None) -> Arm:
    """The baseline: the first arm, the arm of that label, or the only one that has all the words of ``wanted``."""
    if wanted is None:
        return next((arm for arm in groups if arm.finished), groups[0])
    exact = [arm for arm in groups if arm.label == wanted]
    found = exact or [arm for arm in groups if set(wanted.split()) <= set(arm.label.split())]
    if len(found) != 1:
        many = "several arms match" if found else "no such arm"
        raise BeniError(f"--baseline {wanted}: {many}; expected one of\n" + "\n".join(f"  {a.label}" for a in groups))
    return found[0]


def _cost(arm: Arm) -> Cost:
    runs = list(arm.finished.values())
    specs, states = [run.spec for run in runs], [run.status for run in runs]
    return Cost(
        visual_tokens=_mean(spec.get("visual_tokens") for spec in specs),
        trained_parameters=_mean(run.trained_parameters() for run in runs),
        train_flops_per_sample=_mean(spec.get("train_flops_per_sample") for spec in specs),
        prefill_flops=_mean(spec.get("prefill_flops") for spec in specs),
        seconds=_mean(state.get("seconds") for state in states),
        samples_per_s=_mean(run.samples_per_s() for run in runs),
        mfu=_mean(state.get("mfu") for state in states),
        peak_memory_gib=max((v for s in states if (v := number(s.get("peak_memory_gib"))) is not None), default=None),
    )


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in map(number, values) if value is not None]
    return sum(known) / len(known) if known else None
