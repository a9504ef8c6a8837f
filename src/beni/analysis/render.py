"""report.html of one run: a single file without outside links, light or dark, readable on a phone.

The page is written for someone who has never seen the run: did it learn, does it look at the picture, what was built,
what trained, what does it answer, and how is it repeated. Everything a run wrote is text to be escaped, never markup.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beni.analysis import cost, formats
from beni.analysis.pages import render
from beni.analysis.plots import Curve, plot, smooth
from beni.analysis.stats import example_values, metric_value
from beni.components import COMPONENTS
from beni.runs.files import CONFIG, REPORT
from beni.runs.read import Run, collect_run, number, plain

GALLERY_PICTURES = 36
_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}


def render_report(run_folder: Path | str) -> Path:
    """Writes ``run_folder/report.html`` and returns its path. Failed, running and damaged runs render, too."""
    run = collect_run(run_folder)
    path = run.folder / REPORT
    path.write_text(render("report.html.jinja", page(run)), encoding="utf-8")
    return path


def page(run: Run) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    pictures = _gallery(run)
    return {
        "run": run,
        "error": run.status.get("error") if isinstance(run.status.get("error"), Mapping) else None,
        "headline": _headline(run),
        "loss_plot": _loss_plot(run),
        "score_plot": _score_plot(run),
        "stage_plots": _stage_plots(run),
        "evaluations": _evaluations(run),
        "choices": {k: v for k, v in (run.config.get("choices") or {}).items() if v is not None},
        "settings": _settings(run),
        "notices": _notices(run),
        "spec": _spec(run),
        "trains": _trains(run),
        "kinds": _kinds(run),
        "pictures": pictures[:GALLERY_PICTURES],
        "pictures_total": len(pictures),
        "drawn": {one["name"] for card in pictures for question in card["questions"] for one in question["drawings"]},
        "answers": [bool(row.get("correct")) for row in run.gallery],
        "cost": {key: number(run.status.get(key)) for key in ("seconds", "peak_memory_gib")}
        | {"samples_per_s": run.samples_per_s()},
        "utilisation": cost.utilisation(run),
        "flops": cost.flops(run),
        "time": cost.time(run),
        "profile": cost.profile(run),
        "data_errors": _data_errors(run),
        "config_text": _text(run.folder / CONFIG),
    }


def _headline(run: Run) -> dict[str, float | None]:
    found = {key: metric_value(run, f"eval/{key}") for key in ("accuracy", "accuracy_blank", "chance", "loss")}
    accuracy, blank = found["accuracy"], found["accuracy_blank"]
    return found | {"gap": None if accuracy is None or blank is None else accuracy - blank}


def _loss_plot(run: Run) -> str:
    raw = run.series("train/loss")
    curves = [
        Curve("training (each log line)", raw, "c1", "faint"),
        Curve("training (running mean)", smooth(raw) if len(raw) >= 10 else raw, "c1"),
        Curve("held-out (blank image)", run.series("eval/loss_blank"), "c2", "dots"),
        Curve("held-out", run.series("eval/loss"), "c3", "dots"),
    ]
    return plot(curves, label="Loss over training steps")


def _score_plot(run: Run) -> str:
    """Accuracy over steps; a single evaluation at the end is told by the headline alone."""
    if len(run.series("eval/accuracy")) < 2:
        return ""
    curves = [
        Curve("chance", run.series("eval/chance"), "muted", "dashed"),
        Curve("blank image", run.series("eval/accuracy_blank"), "c2", "dots"),
        Curve("with the image", run.series("eval/accuracy"), "c1", "dots"),
    ]
    return plot(curves, label="Held-out accuracy over training steps", y_range=(0.0, 1.0))


def _stage_plots(run: Run) -> dict[str, str]:
    """What parts have left while training, metrics and auxiliary losses: ``<stage>/<name>`` -> its curve."""
    keys = {key.removeprefix("train/").removeprefix("aux/"): key for line in run.metrics for key in line}
    found = {}
    for name, key in sorted(keys.items()):
        if key.startswith("train/") and name.partition("/")[0] in COMPONENTS and (points := run.series(key)):
            found[name] = plot([Curve(name, points, "c1", "line")], label=f"{name} over training steps")
    return found


def _evaluations(run: Run) -> list[dict[str, float | None]]:
    """One row a held-out evaluation: the numbers behind the dots."""
    keys = ("accuracy", "accuracy_blank", "chance", "loss")
    columns = {key: dict(run.series(f"eval/{key}")) for key in keys}
    steps = sorted(set().union(*columns.values()))
    rows = [{"step": step, **{key: columns[key].get(step) for key in keys}} for step in steps]
    return rows if len(rows) > 1 else []


def _settings(run: Run) -> dict[str, Any]:
    """Dotted keys of how the run was trained and computed, as overrides write them, and their values."""
    sections = {name: run.config.get(name) for name in ("train", "compute", "log")}
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        if isinstance(section, Mapping)
        for key, value in section.items()
        if value is not None
    }


def _notices(run: Run) -> list[dict[str, str]]:
    """What the run has decided or met and told, oldest first."""
    return [{key: str(row.get(key, "")) for key in ("time", "step", "text")} for row in run.notices]


def _spec(run: Run) -> dict[str, Any]:
    keys = ("stage", "option", "tokens", "fixed", "mean", "width", "grid", "parameters", "trained", "flops")
    rows = [{key: row.get(key) for key in keys} for row in run.spec.get("rows") or [] if isinstance(row, Mapping)]
    for row in rows:
        row["tokens"] = formats.tokens(number(row["tokens"]), row["fixed"] is not False, number(row["mean"]))
    totals = {key: number(run.spec.get(key)) for key in ("visual_tokens", "train_flops_per_sample", "prefill_flops")}
    return {"rows": rows, **totals}


def _trains(run: Run) -> dict[str, Any]:
    """What trains and what is frozen, per component and in total."""
    counted = run.status.get("parameters")
    plan = _settings(run).get("train.plan")
    rows = [
        {
            "component": name,
            "plan": plan.get(name) if isinstance(plan, Mapping) else None,
            "trained": number(part.get("trained")) or 0.0,
            "frozen": number(part.get("frozen")) or 0.0,
        }
        for name, part in (counted.items() if isinstance(counted, Mapping) else ())
        if isinstance(part, Mapping)
    ]
    rows = [row for row in rows if row["trained"] + row["frozen"]]  # parts without weights have nothing to train
    return {"rows": rows, "trained": sum(r["trained"] for r in rows), "frozen": sum(r["frozen"] for r in rows)}


def _kinds(run: Run) -> list[dict[str, Any]]:
    """Scores per kind of question, from the example rows; without them from the metrics."""
    rows = run.examples("true").values()
    names = {str(row["kind"]) for row in rows if row.get("kind") is not None}
    prefix = "eval/accuracy/"
    names |= {key.removeprefix(prefix) for line in run.metrics for key in line if key.startswith(prefix)}
    found = []
    for name in sorted(names):
        same = [row for row in rows if str(row.get("kind")) == name]
        chances = [value for row in same if (value := number(row.get("chance"))) is not None]
        blank = example_values(run, f"eval/accuracy_blank/{name}")
        true = example_values(run, f"eval/accuracy/{name}")
        found.append(
            {
                "kind": name,
                "n": len(same) or None,
                "true": _mean(list(true.values())) if true else metric_value(run, f"{prefix}{name}"),
                "blank": _mean(list(blank.values())),
                "chance": _mean(chances),
            }
        )
    return found


def _gallery(run: Run) -> list[dict[str, Any]]:
    """Questions grouped by the pictures they are about, in the order of gallery.jsonl."""
    cards: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in run.gallery:
        images = tuple(str(name) for name in row.get("images") or ())
        if images not in cards:
            wanted = len(cards) < GALLERY_PICTURES  # the rest is counted, not embedded
            cards[images] = {"images": [_embed(run.folder, name) for name in images] if wanted else [], "questions": []}
        card = cards[images]
        keys = ("id", "kind", "question", "expected", "prediction", "prediction_blank", "choice", "correct")
        told = {key: row.get(key) for key in keys} | {"attention": number(row.get("attention"))}
        drawn = _drawings(run.folder, row) if card["images"] else []
        before = [one for question in card["questions"] for one in question["drawings"]]
        card["questions"].append(told | {"drawings": [one for one in drawn if one not in before]})
    return list(cards.values())


def _drawings(folder: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is to be laid over the pictures of a question, each by the number of its picture."""
    drawn = []
    for line in row.get("drawings") or ():
        embedded = _embed(folder, str(line.get("file")))
        if embedded["uri"] is not None:
            name, *rest = (plain(line.get(key) or "") for key in ("name", "part", "note"))
            title = ", ".join(word for word in (name, *rest) if word)
            drawn.append({"image": int(line.get("image", 0)), "name": name, "title": title, "uri": embedded["uri"]})
    return drawn


def _embed(folder: Path, name: str) -> dict[str, Any]:
    """A picture as a data URI. Only pictures inside the run folder are read; ``uri`` is ``None`` for any other."""
    path = (folder / name).resolve()
    media = _MEDIA.get(path.suffix.lower())
    if media is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return {"name": name, "uri": None, "small": False}
    content = path.read_bytes()
    small = content[:4] == b"\x89PNG" and len(content) >= 24 and max(struct.unpack(">II", content[16:24])) <= 96
    return {"name": name, "uri": f"data:{media};base64,{base64.b64encode(content).decode()}", "small": small}


def _data_errors(run: Run) -> list[str]:
    """Samples that were left out, as the run wrote them (``data_errors`` in status.json: a count, a text or a list)."""
    found = run.status.get("data_errors")
    return [] if not found else [plain(item) for item in (found if isinstance(found, list) else [found])]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
