"""What stands in a run folder, under which name; and how its files are replaced in one piece and read in any state.

    runs/<study>/.<run>.lock    held by the process that works in the folder
    runs/<study>/.code/<hash>/  the code of its runs (launch/snapshot.py)
    runs/<study>/.jobs/         what submitit and SLURM write for its jobs, logs among them (launch/slurm.py)
    runs/<study>/<run>.old1/    what checkpoint.resume=never has set aside
    runs/<study>/<run>/
        config.yaml             the frozen run (runs/frozen.py)
        identity.json           signature, command, commit, versions, hashes (runs/identity.py)
        status.json             how it is doing (runs/status.py)
        origin.json             command, commit and code it is started with, when, and its place among the arms
        jobs.jsonl              jobs that it was given to, and their starts and ends (launch/jobs.py)
        spec.json               its spec table: tokens, widths, parameters, FLOPs
        metrics.jsonl           every value of every log line; trackers mirror it
        notices.jsonl           what the run decided or met and told the terminal, of all attempts
        data_errors.jsonl       samples that could not be used
        bad_images/             pictures that could not be, by rank
        scores.jsonl            the held-out examples of the last evaluation
        gallery.jsonl, gallery/ some of them with their pictures
        report.html             all of it to look at
        checkpoints/            step_00000100/ ..., best.json (training/checkpoint)
        model/, adapters/       what the run leaves behind (checkpoint.export)
        export/                 what beni.export writes, each with its README.md (analysis/card.py)
        profile/                traces of the steps in log.profile
        evaluations/<name>/     what beni.evaluate has scored: scores.jsonl and summary.json; while it goes on,
                                journal.jsonl, journal-1.jsonl ... of its processes (evals/journal.py)

What stands within a checkpoint is named in training/checkpoint/files.py.
"""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from beni.runs.shape import misfit

CONFIG = "config.yaml"
IDENTITY = "identity.json"
STATUS = "status.json"
ORIGIN = "origin.json"
JOBS = "jobs.jsonl"
LOGS = ".jobs"
"""Beside the run folders of a study: what its jobs print."""
SPEC = "spec.json"
METRICS = "metrics.jsonl"
NOTICES = "notices.jsonl"
DATA_ERRORS = "data_errors.jsonl"
BAD_IMAGES = "bad_images"
SCORES = "scores.jsonl"
GALLERY = "gallery.jsonl"
PICTURES = "gallery"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
BEST = "best.json"
COMPLETE = "complete.json"
"""The marker without which the folder of a checkpoint is none."""
MODEL = "model"
ADAPTERS = "adapters"
EXPORT = "export"
CARD = "README.md"
"""In each folder that is exported."""
PROFILE = "profile"
EVALUATIONS = "evaluations"
SUMMARY = "summary.json"

_JOURNAL = "journal"
_STEP = "step_"
_PARTIAL = ".partial"


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint, below ``checkpoints/``."""
    return f"{_STEP}{step:08d}"


def checkpoints_in(root: Path) -> dict[int, Path]:
    """Step -> folder, of all checkpoints below ``root``, in order."""
    found = ((path.name.removeprefix(_STEP), path) for path in sorted(root.glob(f"{_STEP}*")))
    return {int(step): path for step, path in found if re.fullmatch(r"[0-9]{8,}", step) and path.is_dir()}


def journal_name(rank: int) -> str:
    """The file of the rows that a process of an evaluation has scored while it is under way."""
    return f"{_JOURNAL}-{rank}.jsonl" if rank else f"{_JOURNAL}.jsonl"


def journals_in(folder: Path) -> list[Path]:
    """The journals of all processes that have worked at the evaluation of a folder."""
    return sorted(folder.glob(f"{_JOURNAL}*.jsonl"))


def replace(path: Path, text: str) -> None:
    """Replaces a file in one piece, also where another thread or process does so at the same time: the later one stays.

    Raises:
        OSError: when the disk does not take it; the file is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{_PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Removes what processes that were killed while they replaced a file have left."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """A value as the JSON files of a run folder hold it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def read_json(path: Path, shape: Any = None) -> tuple[Any, str | None]:
    """The content of a JSON file of a shape (runs/shape.py), or ``{}`` and the sentence that says why not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, f"{path.name} cannot be read ({error.strerror or error})"
    except UnicodeDecodeError:
        return {}, f"{path.name} is not UTF-8"
    except (ValueError, RecursionError):
        return {}, f"{path.name} is not complete JSON"
    problem = None if shape is None else misfit(value, shape)
    return (value, None) if problem is None else ({}, f"{path.name} is damaged: {problem}")


def read_jsonl(path: Path, shape: Any = None) -> tuple[list[dict[str, Any]], str | None]:
    """The objects of a JSON-lines file that have a shape (runs/shape.py), and the sentence that says what could not be
    read.

    Other lines are left out. Of a file that is not there nothing is said, nor of a last line without its
    end, which a process that was killed leaves.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], f"{path.name} cannot be read ({error.strerror or error})"
    lines = content.split(b"\n")
    rows = [_row(line, shape or {}) for line in lines]
    bad = sum(1 for line, row in zip(lines[:-1], rows, strict=False) if row is None and line.strip())
    whole = sum(1 for line in lines if line.strip())
    problem = f"{bad} of {whole} lines of {path.name} are damaged and skipped" if bad else None
    return [row for row in rows if row is not None], problem


def _row(line: bytes, shape: Any) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if misfit(row, shape) is None else None
