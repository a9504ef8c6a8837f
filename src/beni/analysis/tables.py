"""A comparison written down: the cells of its tables, and the files compare.md, compare.csv and compare.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beni.analysis import formats
from beni.analysis.comparison import Comparison, Row
from beni.analysis.stats import Difference, Summary

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
    """Writes compare.md, compare.csv and compare.json into the study folder."""
    texts = {"md": to_markdown(comparison), "csv": to_csv(comparison), "json": to_json(comparison)}
    paths = []
    for suffix, text in texts.items():
        paths.append(comparison.folder / f"compare.{suffix}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def score_cells(row: Row) -> list[str]:
    """Arm, seeds, score, blank score, difference, pairs, paired: as shown in the terminal and in Markdown."""
    if row.difference is None:
        difference, pairs = ("baseline" if row.pairing is None else formats.MISSING), formats.MISSING
    else:
        difference, pairs = formats.signed(row.difference.mean, row.difference.se), formats.count(row.difference.pairs)
    means = formats.mean_sd(row.score.mean, row.score.sd), formats.score(row.blank.mean)
    verdict = formats.MISSING if row.pairing is None or row.difference is None else row.pairing.verdict
    return [row.arm.label, row.seeds, *means, difference, pairs, verdict]


def cost_cells(row: Row) -> list[str]:
    """Arm and its cost, as shown in the terminal and in Markdown."""
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


def to_markdown(comparison: Comparison) -> str:
    """The comparison for a pull request."""
    blocks = [f"# {comparison.folder.resolve().name}: {comparison.metric}"]
    blocks += [_escape(note) for note in comparison.notes]
    blocks.append(_markdown_table(SCORE_HEADER, (score_cells(row) for row in comparison.rows)))
    if told := details(comparison):
        blocks.append("## Pairs\n\n" + "\n".join(f"- {_escape(line)}" for line in told))
    blocks.append(
        "## Cost\n\nMeans over seeds; FLOPs are per sample.\n\n"
        + _markdown_table(COST_HEADER, (cost_cells(row) for row in comparison.rows))
    )
    if told := damaged_lines(comparison):
        blocks.append("## Damaged\n\n" + "\n".join(f"- {_escape(line)}" for line in told))
    if told := unfinished_lines(comparison):
        blocks.append("## Not finished\n\n" + "\n".join(f"- {_escape(line)}" for line in told))
    return "\n\n".join(blocks) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line an arm, plain numbers; empty where nothing is known."""
    records = []
    for row in comparison.rows:
        difference = row.difference
        records.append(
            {
                "arm": row.arm.label,
                "metric": comparison.metric,
                "runs": len(row.arm.runs),
                "finished": len(row.arm.finished),
                "failed": len(row.arm.failed),
                "score_mean": row.score.mean,
                "score_sd": row.score.sd,
                "blank_mean": row.blank.mean,
                "blank_sd": row.blank.sd,
                "chance": row.chance,
                "difference": difference.mean if difference else None,
                "difference_se": difference.se if difference else None,
                "paired_seeds": len(difference.per_seed) if difference else None,
                "pairs": difference.pairs if difference else None,
                "paired": str(row.pairing) if row.pairing else "baseline",
                **asdict(row.cost),
                "failures": "; ".join(run.reason or "" for run in row.arm.failed),
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything, down to the value of each seed."""
    document = {
        "study": comparison.folder.resolve().name,
        "metric": comparison.metric,
        "baseline": comparison.baseline,
        "notes": comparison.notes,
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
            }
            for row in comparison.rows
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(item: Summary | Difference | None) -> dict[str, Any] | None:
    return None if item is None else asdict(item)


def _markdown_table(header: Iterable[str], rows: Iterable[list[str]]) -> str:
    lines = [list(header), *rows]
    cells = [" | ".join(_escape(cell) for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in [cells[0], " | ".join(["---"] * len(lines[0])), *cells[1:]])


def _escape(text: str) -> str:
    for mark in "\\|<`*":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
