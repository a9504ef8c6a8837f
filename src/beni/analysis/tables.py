"""A comparison written down: its tables at a terminal, and the files of a study: report and results."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beni.analysis import formats
from beni.analysis.budgets import Budgets, amounts_of, budgets_of
from beni.analysis.comparison import Comparison, Row
from beni.analysis.sections import corrected_for, headline, interval, p_value, sections
from beni.analysis.stats import Difference, Summary, metric_value
from beni.analysis.study import study_page
from beni.runs.files import REPORT, replace
from beni.runs.read import number

SCORE_HEADER = ("arm", "seeds", "score", "blank", "difference", "pairs", "paired")
COST_HEADER = tuple(
    [
        "arm",
        "visual tokens",
        "trained params",
        "train FLOPs",
        "prefill FLOPs",
        "time",
        "samples/s",
        "MFU",
        "peak memory",
    ]
)


def write_comparison(comparison: Comparison) -> list[Path]:
    """Writes report.html, report.md, results.csv and results.json into the study folder.

    Raises:
        OSError: when the disk does not take them.
    """
    budgets = budgets_of([row.arm for row in comparison.rows])
    texts = {
        REPORT: study_page(comparison, budgets),
        "report.md": to_markdown(comparison, budgets),
        "results.csv": to_csv(comparison),
        "results.json": to_json(comparison, budgets),
    }
    for name, text in texts.items():
        replace(comparison.folder / name, text)
    return [comparison.folder / name for name in texts]


def score_cells(row: Row) -> list[str]:
    """The cells of ``SCORE_HEADER``, as shown in the terminal."""
    if row.difference is None:
        difference, pairs = ("baseline" if row.pairing is None else formats.MISSING), formats.MISSING
    else:
        difference, pairs = formats.signed(row.difference.mean, row.difference.se), formats.count(row.difference.pairs)
    means = formats.mean_sd(row.score.mean, row.score.sd), formats.score(row.blank.mean)
    verdict = formats.MISSING if row.pairing is None or row.difference is None else row.pairing.verdict
    return [row.arm.label, row.seeds, *means, difference, pairs, verdict]


def cost_cells(row: Row) -> list[str]:
    """Arm and its cost, as shown in the terminal."""
    cost = row.cost
    counts = (cost.visual_tokens, cost.trained_parameters, cost.train_flops_per_sample, cost.prefill_flops)
    speed = (formats.duration(cost.seconds), formats.count(cost.samples_per_s), formats.share(cost.mfu))
    rest = (*speed, formats.gib(cost.peak_memory_gib))
    return [row.arm.label, *(formats.count(value) for value in counts), *rest]


def details(comparison: Comparison) -> list[str]:
    """One sentence an arm: the two levels of its difference and the proof of pairing."""
    lines = []
    for row in comparison.rows:
        if row.pairing is not None:
            levels = row.difference.describe() if row.difference else "no finished seed in common with the baseline"
            if row.difference and row.difference.low is not None:
                ends = interval(row.difference.low, row.difference.high)
                p = p_value(row.difference.p_adjusted) + corrected_for(comparison)
                levels = f"95 % interval {ends}, p {p}; {levels}"
            notes = "".join(f" (note: {note})" for note in row.pairing.notes)
            lines.append(f"{row.arm.label}: {levels}. paired: {row.pairing}{notes}")
    return lines


def unfinished_lines(comparison: Comparison) -> list[str]:
    """One sentence a run without a final score: what became of it and why."""
    return [
        f"{label} (seed {run.seed}): {run.state} at step {run.status.get('step', '?')}"
        + (f", {run.reason}" if run.reason else "")
        + f" [{run.folder.name}]"
        for label, run in comparison.unfinished
    ]


def damaged_lines(comparison: Comparison) -> list[str]:
    """One sentence a run of which something is missing or cannot be right."""
    return [
        f"{label} (seed {run.seed}): {'; '.join(run.damage)} [{run.folder.name}]; restore the file from a copy, or "
        "move the folder away and rerun its command"
        for label, run in comparison.damaged
    ]


def to_markdown(comparison: Comparison, budgets: Budgets) -> str:
    """The report for a pull request: the sentences and tables of report.html."""
    said = headline(comparison, budgets)
    blocks = [f"# {comparison.folder.resolve().name}: {comparison.metric}"]
    blocks += [_escape(line) for line in (*said, *(note for note in comparison.notes if note not in said))]
    for section in sections(comparison, budgets):
        blocks.append(f"## {section.title}")
        blocks += [_escape(text) for text in section.texts]
        if section.rows:
            blocks.append(_markdown_table(section.header, section.rows))
        if section.lines:
            blocks.append("\n".join(f"- {_escape(line)}" for line in section.lines))
        blocks += [f"{_escape(what)}:\n\n{_code(command)}" for what, command in section.commands]
    return "\n\n".join(blocks) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line a run, finished or not, plain numbers; empty where nothing is known.

    Columns: what the run is, its state, every ``eval/`` metric that any run has at its end, what it cost, and the
    hashes that identify it.
    """
    runs = [(row, run) for row in comparison.rows for run in row.arm.runs]
    wanted = {comparison.metric, *(key for _, run in runs for key in run.status if key.startswith("eval/"))}
    wanted |= {key for _, run in runs for line in run.metrics[-1:] for key in line if key.startswith("eval/")}
    records = []
    for row, run in runs:
        finished = run.state == "finished"
        records.append(
            {
                "arm": row.arm.label,
                "seed": run.seed,
                "state": run.state,
                "baseline": row.arm.label == comparison.baseline,
            }
            | {"used": row.arm.finished.get(run.seed) is run, "reason": run.reason, "damage": "; ".join(run.damage)}
            | {metric: metric_value(run, metric) if finished else None for metric in sorted(wanted)}
            | amounts_of(run)
            | {"visual_tokens": number(run.spec.get("visual_tokens")), "samples_per_s": run.samples_per_s()}
            | {key: number(run.status.get(key)) for key in ("seconds", "peak_memory_gib", "mfu")}
            | {"paired": str(row.pairing) if row.pairing else "baseline"}
            | {key: run.identity.get(key) for key in ("signature", "code", "data_fingerprint", "template_hash")}
            | {"folder": run.folder.name, "command": run.identity.get("command")}
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_json(comparison: Comparison, budgets: Budgets) -> str:
    """Everything, down to the value of each seed."""
    document = {
        "study": comparison.folder.resolve().name,
        "metric": comparison.metric,
        "baseline": comparison.baseline,
        "notes": comparison.notes,
        "ranking": comparison.ranking,
        "match": budgets.match,
        "budgets": budgets.notes,
        "arms": [
            {
                "label": row.arm.label,
                "runs": [
                    {"folder": run.folder.name, "seed": run.seed, "state": run.state, "reason": run.reason}
                    | {"damage": run.damage}
                    for run in row.arm.runs
                ],
                "score": _plain(row.score),
                "blank": _plain(row.blank),
                "chance": row.chance,
                "difference": _plain(row.difference),
                "pairing": asdict(row.pairing) if row.pairing else None,
                "cost": asdict(row.cost),
                "amounts": amount,
                "ablations": [asdict(one) for one in row.ablations],
            }
            for row, amount in zip(comparison.rows, budgets.amounts, strict=True)
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(item: Summary | Difference | None) -> dict[str, Any] | None:
    return None if item is None else asdict(item)


def _markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    cells = [" | ".join(_escape(cell) for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in [cells[0], " | ".join(["---"] * len(lines[0])), *cells[1:]])


def _code(text: str) -> str:
    """A block whose fence is longer than any row of backticks in the text."""
    fence = "`" * max(3, 1 + max((len(row) for row in re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"


def _escape(text: str) -> str:
    for mark in "\\|<`*":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
