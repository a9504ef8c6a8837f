"""README.md of an exported folder, as the hub reads it: choices, data, scores, cost and hashes from the run folder.

A score is shown for the step that was exported alone. Its interval is that of the mean over pictures, of one run: what
another seed would have scored is not in it. The licence is left to whoever publishes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from beni.analysis import cost, formats
from beni.analysis.inference import interval
from beni.analysis.pages import render_markdown
from beni.components import BACKBONES
from beni.runs.files import CARD
from beni.runs.read import Run, collect_run, number

READ_AT_ONCE = 1 << 20
ACCURACIES = {"true": "with the image", "blank": "with a blank image instead"}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        form: of ``python -m beni.export``.
        what: that form writes, in words.
        step: that the weights are of.
        kind: ``weights`` or ``EMA weights``.
        scored: whether these are the weights that the run scores.
        architecture: class of transformers that reads the folder; None where it is no such class.
        compared: what was compared with the run, and the result.
        notes: what a user must know.
    """

    form: str
    what: str
    step: int
    kind: str
    scored: bool
    architecture: str | None
    compared: Sequence[tuple[str, str]]
    notes: Sequence[str]


def write_card(run_folder: Path, out: Path, exported: Exported) -> Path:
    """Writes ``README.md`` into the exported folder ``out``, beside all its other files, and returns its path."""
    path = out / CARD
    values = card(collect_run(run_folder), exported) | {"files": files_of(out)}
    path.write_text(render_markdown("card.md.jinja", values), encoding="utf-8")
    return path


def card(run: Run, exported: Exported) -> dict[str, Any]:
    """Everything the template shows but the files, as plain values."""
    data, status = run.config.get("data") or {}, run.status
    template, hashes = run.config.get("template") or {}, run.identity.get("hashes") or {}
    return {
        "front": front(run),
        "name": run.name,
        "exported": exported,
        "choices": {k: v for k, v in (run.config.get("choices") or {}).items() if v is not None},
        "parts": parts(run),
        "plan": (run.config.get("train") or {}).get("plan") or {},
        "data": {key: value for key, value in data.items() if key != "_target_"},
        "samples": run.identity.get("data_samples") or {},
        "template": {key: template.get(key) for key in ("name", "system", "max_length")},
        "scores": scores(run, exported),
        "kinds": kinds(run, exported),
        "scored_step": scored_step(run),
        "cost": {
            "seconds": number(status.get("seconds")),
            "samples_per_s": run.samples_per_s(),
            "peak_memory_gib": number(status.get("peak_memory_gib")),
            "trained": run.trained_parameters(),
        },
        "flops": cost.flops(run),
        "hashes": {
            "signature of the settings": run.identity.get("signature"),
            "data": run.identity.get("data_fingerprint"),
            "order of the data": hashes.get("data_order"),
            "template and tokenizer": run.identity.get("template_hash"),
            "commit": (run.identity.get("git") or {}).get("commit"),
            "code": run.identity.get("code"),
        },
        "versions": run.identity.get("versions") or {},
        "damage": list(run.damage),
    }


def front(run: Run) -> str:
    """What the hub reads at the head of the file, as YAML, without a licence."""
    bases = [
        node["name"]
        for node in (run.config.get(group) or {} for group in BACKBONES)
        if node.get("weights") == "pretrained" and str(node.get("name") or "").count("/") == 1
    ]
    told: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["beni"]}
    return yaml.safe_dump(told | ({"base_model": bases} if bases else {}), sort_keys=False).strip()


def parts(run: Run) -> list[dict[str, Any]]:
    """Rows of the spec table: what each stage makes of an image, and what it has of parameters."""
    rows = [row for row in run.spec.get("rows") or () if isinstance(row, Mapping)]
    return [
        {
            "stage": row.get("stage"),
            "option": row.get("option"),
            "tokens": formats.tokens(number(row.get("tokens")), row.get("fixed") is not False, number(row.get("mean"))),
            "width": number(row.get("width")),
            "parameters": number(row.get("parameters")),
            "trained": number(row.get("trained")),
        }
        for row in rows
    ]


def scored_step(run: Run) -> int | None:
    """The step of the last evaluation with a row an example."""
    steps = [row["step"] for row in run.examples("true").values()]
    return max(steps, default=None)


def scores(run: Run, exported: Exported) -> list[dict[str, Any]]:
    """Accuracy and loss of the exported step: value, 95 % interval over pictures where there are rows, examples."""
    if not exported.scored:
        return []
    rows, exact = [], scored_step(run) == exported.step
    for variant, words in ACCURACIES.items():
        for name, field in (("accuracy", "score"), ("loss", "loss")):
            metric = f"eval/{name}" + ("" if variant == "true" else f"_{variant}")
            value = dict(run.series(metric)).get(exported.step)
            found = examples(run, variant, field) if exact else None
            if value is not None or found is not None:
                rows.append({"name": f"{name}, {words}", "value": value, **(found or NO_EXAMPLES)})
    chance = dict(run.series("eval/chance")).get(exported.step)
    if chance is not None:
        rows.append({"name": "chance", "value": chance, **NO_EXAMPLES})
    return rows


NO_EXAMPLES: dict[str, Any] = {"low": None, "high": None, "n": None}


def examples(run: Run, variant: str, field: str, kind: str | None = None) -> dict[str, Any] | None:
    """Value, interval and number of examples, from the rows of the last evaluation; None without rows."""
    rows = [row for row in run.examples(variant).values() if kind is None or str(row.get("kind")) == kind]
    values = [(str(row.get("cluster") or row["id"]), number(row.get(field))) for row in rows]
    known = [(cluster, value) for cluster, value in values if value is not None]
    if not known:
        return None
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for cluster, _ in known))}
    sums, counts = np.zeros((2, 1, len(places)))
    for cluster, value in known:
        sums[0, places[cluster]] += value
        counts[0, places[cluster]] += 1
    low, high = interval(sums, counts) or (None, None)
    return {"value": float(sums.sum() / counts.sum()), "low": low, "high": high, "n": len(known)}


def kinds(run: Run, exported: Exported) -> list[dict[str, Any]]:
    """Accuracy by kind of question, where the exported step is the one with rows."""
    if not exported.scored or scored_step(run) != exported.step:
        return []
    names = sorted({str(row["kind"]) for row in run.examples("true").values() if row.get("kind") is not None})
    found = [(name, examples(run, "true", "score", name)) for name in names]
    return [{"name": name, **row} for name, row in found if row is not None]


def files_of(out: Path) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of every file of a folder."""
    paths = sorted(path for path in out.rglob("*") if path.is_file() and path.name != CARD)
    return [
        {"name": str(path.relative_to(out)), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths
    ]


def sha256(path: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
