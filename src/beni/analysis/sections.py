"""The report of a study as sections of sentences and tables, the same for report.html and report.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from beni.analysis import formats, variants
from beni.analysis.budgets import Budgets
from beni.analysis.changes import between_seeds, changed_answers
from beni.analysis.comparison import Comparison, Row
from beni.analysis.inference import FEWEST, LEVEL
from beni.analysis.power import detectable, pooled
from beni.analysis.stats import Difference, Summary, lower_is_better, summarize
from beni.runs.read import Run

BASELINE = "baseline"
PLANNED = (6, 8, 10, 12, 16, 24)
"""Numbers of seeds for which a report says what they would support."""
_OTHER = 40  # kinds of question of which a table is still read


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it.

    Args:
        title: the heading.
        texts: paragraphs before the table.
        header: of the table, the first column left-aligned.
        rows: cells as they are read, as many as the header has.
        lines: a list below the table.
        commands: (what, command) pairs to copy.
        plots: names of the plots that a page shows here (analysis/study.py).
        urgent: whether it is shown as an error.
    """

    title: str
    texts: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    plots: tuple[str, ...] = ()
    urgent: bool = False


def sections(comparison: Comparison, budgets: Budgets) -> list[Section]:
    """All sections that a comparison has something for, in the order in which a reader needs them."""
    made = (
        _arms(comparison),
        _planning(comparison),
        _costs(comparison, budgets),
        _pictures(comparison),
        _kinds(comparison),
        _changes(comparison),
        _pairing(comparison),
        _damaged(comparison),
        _unfinished(comparison),
        _reproduce(comparison),
    )
    return [section for section in made if section.rows or section.lines]


def interval(low: float | None, high: float | None) -> str:
    """``[-0.012, +0.034]``; a dash where it is not known."""
    return formats.MISSING if low is None or high is None else f"[{low:+.3f}, {high:+.3f}]"


def p_value(p: float | None) -> str:
    """Three digits behind the point; ``< 0.001`` below them."""
    if p is None:
        return formats.MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(difference: Difference | None) -> str:
    """What the noise allows to say of a difference."""
    if difference is None or difference.supported is None:
        return "not known"
    if difference.supported:
        return "supported"
    return "not supported" if _clear(difference) else "within noise"


def _clear(difference: Difference) -> bool:
    """Whether the interval does not hold 0."""
    return difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high


def corrected_for(comparison: Comparison) -> str:
    """For how many arms p is corrected, to stand behind it; nothing where there is one."""
    tests = sum(1 for row in comparison.rows if row.difference is not None and row.difference.p is not None)
    return f", corrected for {tests} arms" if tests > 1 else ""


def baseline_of(comparison: Comparison) -> Row:
    """The row that the others are compared with."""
    return next(row for row in comparison.rows if row.arm.label == comparison.baseline)


def _arms(comparison: Comparison) -> Section:
    header = ("arm", "seeds", "score", "difference", "95 % interval", "noise", "p", "MDE", "pairs", "paired")
    header = (*header, "effect")
    texts = (
        "Score: mean ± standard deviation over seeds. Difference: arm minus baseline, paired by seed and example. "
        "Noise: standard deviation of the difference between seeds. p: the larger one of a sign-flip test over seeds, "
        f"for the images that were asked, and a t-test over seeds and images, for new ones{corrected_for(comparison)}. "
        "MDE: smallest true difference of one arm that so many seeds support with 80 % power at its noise; "
        f"below {FEWEST} seeds there is none, since no p can be {LEVEL}.",
    )
    rows = tuple(_arm(comparison, row) for row in comparison.rows)
    return Section("Arms", texts, header, rows, plots=("differences",))


def _arm(comparison: Comparison, row: Row) -> tuple[str, ...]:
    start = (row.arm.label, row.seeds, formats.mean_sd(row.score.mean, row.score.sd))
    one = row.difference
    if one is None:
        told = BASELINE if row.arm.label == comparison.baseline else formats.MISSING
        return (*start, told, *[formats.MISSING] * 7)
    return (
        *start,
        formats.signed(one.mean),
        interval(one.low, one.high),
        formats.MISSING if one.sd_seeds is None else f"{one.sd_seeds:.3f}",
        p_value(one.p_adjusted),
        formats.MISSING if one.mde is None else f"{one.mde:.3f}",
        formats.count(one.pairs),
        row.pairing.verdict if row.pairing else formats.MISSING,
        verdict(one),
    )


def _planning(comparison: Comparison) -> Section:
    """What as many arms with the noise of these would support, by the number of seeds."""
    tested = [row.difference for row in comparison.rows if row.difference is not None and row.difference.p is not None]
    noise = pooled([one.noise for one in tested if one.noise is not None])
    if noise is None:
        return Section("How many seeds?")
    counts = sorted({len(tested), 1}, reverse=True)
    header = ("seeds of each arm", *("one arm" if count == 1 else f"{count} arms" for count in counts))
    found = ((seeds, [detectable(noise, seeds, count) for count in counts]) for seeds in PLANNED)
    rows = tuple((str(seeds), *(formats.score(one) for one in told)) for seeds, told in found)
    most = max(len(one.per_seed) for one in tested)
    texts = (
        "Smallest true difference of one arm that a study supports with 80 % power, by its seeds and the arms that it "
        f"compares with a baseline, at the mean noise of the arms above: {math.sqrt(noise.seed):.3f} between seeds, "
        f"and {math.sqrt(noise.shared):.3f} from the choice of {noise.pictures} images, which no seed makes smaller. "
        f"The noise is that of at most {most} seeds, and known no better than they can tell.",
    )
    return Section("How many seeds?", texts, header, rows)


def _costs(comparison: Comparison, budgets: Budgets) -> Section:
    header = ("arm", "score", "visual tokens", "trained params", "steps", "train FLOPs", "prefill FLOPs", "peak memory")
    header = (*header, "samples/s", "time")
    rows = []
    for row, amount in zip(comparison.rows, budgets.amounts, strict=True):
        cost = row.cost
        counts = (cost.visual_tokens, cost.trained_parameters, amount["steps"], amount["train_flops"])
        told = [formats.count(value) for value in (*counts, cost.prefill_flops)]
        rest = [formats.gib(cost.peak_memory_gib), formats.count(cost.samples_per_s)]
        rows.append((row.arm.label, formats.score(row.score.mean), *told, *rest, formats.duration(cost.seconds)))
    texts = (
        "Means over the finished seeds, peak memory the largest. Train FLOPs: forward and backward of all steps. "
        "Prefill FLOPs: of one sample.",
        *budgets.notes,
    )
    return Section("Cost beside quality", texts, header, tuple(rows), plots=("prefill", "training"))


def _pictures(comparison: Comparison) -> Section:
    wanted = [one.name for one in comparison.rows[0].ablations]
    rows, seen = [], False
    for row in comparison.rows:
        scores = {one.name: one for one in row.ablations}
        told = [_gap(scores[name]) if name in scores else formats.MISSING for name in wanted]
        seen = seen or any(one != formats.MISSING for one in told)
        rows.append((row.arm.label, formats.mean_sd(row.score.mean, row.score.sd), *told, formats.score(row.chance)))
    texts = (
        "What the true picture adds to the score beside each ablation, with its 95 % interval. An ablation changes the "
        "pictures and nothing else; where the interval holds 0, the answers do not need what it takes away.",
    )
    header = ("arm", "true picture", *wanted, "chance")
    return Section("Does it look at the picture?", texts, header, tuple(rows) if seen else ())


def _gap(one: variants.Variant) -> str:
    """``+0.258 [+0.223, +0.305]``."""
    if one.score.mean is None or one.gap is None:
        return formats.MISSING
    return f"{formats.signed(one.gap.mean)} {interval(one.gap.low, one.gap.high)}"


def _kinds(comparison: Comparison) -> Section:
    kinds = sorted({str(k) for row in comparison.rows for run in row.arm.finished.values() for k in _kinds_of(run)})
    if len(kinds) < 2 or comparison.metric.count("/") != 1:
        return Section("By kind of question")
    shown = kinds[:_OTHER]
    own = {kind: summarize(baseline_of(comparison).arm, f"{comparison.metric}/{kind}") for kind in shown}
    rows = []
    for row in comparison.rows:
        scores = {kind: summarize(row.arm, f"{comparison.metric}/{kind}") for kind in shown}
        same = row.arm.label == comparison.baseline
        told = (formats.score(s.mean) + ("" if same else _beside(s, own[kind])) for kind, s in scores.items())
        rows.append((row.arm.label, *told))
    left = f" The first {_OTHER} of {len(kinds)} kinds are shown." if len(kinds) > _OTHER else ""
    texts = (
        f"Mean over seeds, in brackets the paired difference to the baseline; not corrected for many tests.{left}",
    )
    return Section("By kind of question", texts, ("arm", *shown), tuple(rows))


def _beside(score: Summary, own: Summary) -> str:
    """`` (+0.012)``: the mean difference over the seeds that both have."""
    found = [score.values[seed] - own.values[seed] for seed in score.values if seed in own.values]
    return f" ({formats.signed(sum(found) / len(found))})" if found else ""


def _kinds_of(run: Run) -> set[str]:
    answers = run.answers()
    return set() if answers is None else {kind for kind in answers.kinds if kind is not None}


def _changes(comparison: Comparison) -> Section:
    own = baseline_of(comparison).arm
    rows = []
    for row in comparison.rows:
        noise = row.arm is own
        found = between_seeds(own) if noise else changed_answers(row.arm, own)
        if found is not None:
            label = f"{row.arm.label} (between its seeds)" if noise else row.arm.label
            shares = (found.changed, found.worse, found.better)
            rows.append((label, formats.count(found.pairs), *map(formats.share, shares)))
    texts = (
        "Arm against baseline at the same seed and example. The baseline's own row compares each of its seeds with the "
        "one before: so many answers change by chance.",
    )
    header = ("arm", "pairs", "other answer", "right → wrong", "wrong → right")
    return Section("Changed answers", texts, header, tuple(rows))


def _pairing(comparison: Comparison) -> Section:
    lines = []
    for row in comparison.rows:
        if row.pairing is not None:
            told = row.difference.describe() if row.difference else "no finished seed in common with the baseline"
            notes = "".join(f" Note: {note}." for note in row.pairing.notes)
            lines.append(f"{row.arm.label}: paired: {row.pairing}. {told}.{notes}")
    texts = ("By the hashes of batches, initial weights, code, data and template, seed by seed.",)
    return Section("Proof of pairing", texts, lines=tuple(lines))


def _damaged(comparison: Comparison) -> Section:
    lines = (_of_run(label, run, "; ".join(run.damage)) for label, run in comparison.damaged)
    fix = ("Restore the files from a copy, or move the folder away and rerun its command.",)
    return Section("Damaged runs", fix, lines=tuple(lines), urgent=True)


def _unfinished(comparison: Comparison) -> Section:
    def told(run: Run) -> str:
        return f"{run.state} at step {run.status.get('step', '?')}" + (f", {run.reason}" if run.reason else "")

    return Section("Not finished", lines=tuple(_of_run(label, run, told(run)) for label, run in comparison.unfinished))


def _of_run(label: str, run: Run, told: str) -> str:
    return f"{label} (seed {run.seed}): {told} [{run.folder.name}]"


def _reproduce(comparison: Comparison) -> Section:
    runs = [(row.arm.label, run) for row in comparison.rows for run in row.arm.runs]
    columns: dict[str, Callable[[Run], object]] = {
        "config (signature)": lambda run: run.identity.get("signature"),
        "git commit": _commit,
        "code": lambda run: run.identity.get("code"),
        "data": lambda run: run.identity.get("data_fingerprint"),
        "template": lambda run: run.identity.get("template_hash"),
        "data order": lambda run: (run.identity.get("hashes") or {}).get("data_order"),
        "folder": lambda run: run.folder.name,
    }
    rows = tuple(
        (label, str(run.seed), *(str(read(run) or formats.MISSING) for read in columns.values())) for label, run in runs
    )
    told = dict.fromkeys(_versions(run) for _, run in runs if run.identity.get("versions"))
    texts = tuple(f"Versions: {one}." for one in told)
    commands = tuple(
        (f"{label}, seed {run.seed}", str(run.identity["command"]))
        for label, run in runs
        if run.identity.get("command")
    )
    return Section("Reproduce", texts, ("arm", "seed", *columns), rows, commands=commands)


def _commit(run: Run) -> str | None:
    git = run.identity.get("git") or {}
    return git["commit"][:12] + (" + uncommitted" if git.get("dirty") else "") if git.get("commit") else None


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.identity["versions"].items())


def headline(comparison: Comparison, budgets: Budgets) -> Sequence[str]:
    """The sentences that a report begins with: how far the seeds carry, what was compared, what the study supports."""
    finished = max((len(row.arm.finished) for row in comparison.rows), default=0)
    words = []
    if finished == 1:
        words.append("One seed per arm: the differences hold for this seed; the variation between seeds is unknown.")
    seeds = {run.seed for row in comparison.rows for run in row.arm.runs}
    better = "lower" if lower_is_better(comparison.metric) else "higher"
    words.append(
        f"{len(comparison.rows)} arms and {len(seeds)} seeds compared by {comparison.metric} ({better} is better) with "
        f"the baseline {comparison.baseline}."
    )
    words.append(support(comparison))
    match = budgets.match
    return (*words, *(note for note in budgets.notes if match or note.startswith("NOT MATCHED")))


def support(comparison: Comparison) -> str:
    """What the study supports: differences to the baseline, and an order only where the noise supports it."""
    if not any(row.arm.finished for row in comparison.rows):
        return "Nothing is finished, so nothing is supported yet."
    known = [row for row in comparison.rows if row.difference is not None]
    if comparison.ranking is None and all(not row.difference or row.difference.supported is None for row in known):
        return "No difference is supported: nothing says how large the noise is, so no order of the arms is given."
    return f"{_against_baseline(known, corrected_for(comparison))} {_order(comparison)}"


def _against_baseline(known: Sequence[Row], corrected: str) -> str:
    clear = [row for row in known if row.difference and row.difference.supported]
    if clear:
        told = (f"{_named(row)} {formats.signed(row.difference.mean)}" for row in clear if row.difference)
        return f"Supported against the baseline: {'; '.join(told)}."
    suggested = [_named(row) for row in known if row.difference and _clear(row.difference)]
    if suggested:
        return (
            f"No difference to the baseline is supported: no p{corrected and corrected + ','} is at most {LEVEL}. "
            f"Intervals by themselves are clear of 0: {'; '.join(suggested)}."
        )
    return "No difference to the baseline is supported: none is clear of the noise."


def _named(row: Row) -> str:
    """An arm, and whether what sets it apart from the baseline is not proven to be its settings alone."""
    return row.arm.label if row.fair or row.pairing is None else f"{row.arm.label} ({row.pairing.verdict})"


def _order(comparison: Comparison) -> str:
    left_out = [_named(row) for row in comparison.rows if not row.fair and row.score.mean is not None]
    without = f" Not proven to be paired, so without a place in an order: {'; '.join(left_out)}." if left_out else ""
    if comparison.ranking is None:
        return f"The noise supports no order of all arms.{without}"
    groups = [" ≈ ".join(group) for group in comparison.ranking]
    joined = " (≈: not all of these can be told apart)" if max(map(len, comparison.ranking)) > 1 else ""
    return f"Supported order, best first: {' > '.join(groups)}{joined}.{without}"
