"""Run folders read back: what a run was, how it went, what it scored.

- Reads only YAML and JSON text; nothing is unpickled and torch is never imported, so a report takes a moment.
- Tolerant of a run that is still writing or died: a half-written last line is dropped, a missing file is empty, and
  whatever could not be read, or cannot be right, is named in ``Run.damage`` instead of raised.
- Large files (metrics, scores, gallery) are read when first asked for.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from beni.errors import BeniError
from beni.runs import shape
from beni.runs.answers import Answers, Scores, read_scores
from beni.runs.files import (
    CONFIG,
    DATA_ERRORS,
    GALLERY,
    IDENTITY,
    METRICS,
    NOTICES,
    ORIGIN,
    SCORES,
    SPEC,
    STATUS,
    read_json,
    read_jsonl,
)
from beni.runs.frozen import read_frozen
from beni.runs.identity import relevant, signature
from beni.runs.lock import is_set_aside
from beni.runs.status import read_status_or_why

# Choices that name how a run was started or written down; the values they set speak for themselves.
NOT_IN_LABELS = frozenset({"experiment", "launcher", "tracker", "recipe"})

_RUN_FILES = (STATUS, IDENTITY, CONFIG)
_NAME = re.compile(r"^(?P<choices>.*?)-s(?P<seed>\d+)-[0-9a-f]{6,}$")
_RESULT = re.compile(r"\bResult \(\d{4}-\d\d-\d\d")
_ABSENT = object()


@dataclass(frozen=True)
class Fate:
    """What became of a run, by whom launched it (launch/states.py): a state, and why, or an empty text."""

    state: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Args:
        folder: where it lies.
        config: the frozen, resolved config; empty when it cannot be read.
        identity: signature, git commit, versions and hashes.
        status: state, step, error and headline scores.
        problems: one sentence for each of the three files above that cannot be read.
        fate: what became of it, where that was asked; a process that was killed leaves the status ``running``.
        origin: of a run that has no identity yet, what it was submitted with.
    """

    folder: Path
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    status: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    fate: Fate | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.identity.get("name") or self.folder.name)

    @property
    def seed(self) -> int | None:
        """``train.seed``, or the seed in the folder's name when the config cannot be read."""
        value = _mapping(self.config.get("train")).get("seed")
        match = _NAME.match(self.folder.name)
        if isinstance(value, int):
            return value
        return int(match["seed"]) if match else None

    @property
    def ema(self) -> float | None:
        """``train.ema``, the decay of the averaged weights that were scored; None where the weights themselves were."""
        return number(_mapping(self.config.get("train")).get("ema")) or None

    @property
    def state(self) -> str:
        """``running | finished | failed | preempted | dropped``, or ``unknown`` without a readable status.json; of a
        known fate ``waiting`` and ``lost`` as well.
        """
        return self.fate.state if self.fate else str(self.status.get("state") or "unknown")

    @property
    def reason(self) -> str | None:
        """Why a run failed, waits or was lost, on one line: ``DataError: row 3 has no image``."""
        error = self.status.get("error")
        told = (self.fate.reason if self.fate else "") or None
        if not error or self.state == "lost":
            return told
        if not isinstance(error, Mapping):
            return str(error)
        message = str(error.get("message") or "").strip()
        return ": ".join(part for part in (str(error.get("type") or ""), " ".join(message.split())) if part)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self._metrics[0]

    @cached_property
    def gallery(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / GALLERY, shape.OF_GALLERY_ROW)[0]

    @cached_property
    def notices(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / NOTICES)[0]

    @cached_property
    def faults(self) -> list[dict[str, Any]]:
        """Images that could not be used, one row each."""
        return read_jsonl(self.folder / DATA_ERRORS)[0]

    @property
    def hypothesis(self) -> str | None:
        """What the experiment of the run was to show, in its own words; None where it had none.

        The result of an earlier time (``Result (2026-11-30): ...``), which the file had when the run began, is left
        out: it is not this run's.
        """
        told = self.identity.get("hypothesis")
        return _RESULT.split(told)[0].rstrip() or None if isinstance(told, str) else None

    @cached_property
    def spec(self) -> Mapping[str, Any]:
        return self._spec[0]

    @cached_property
    def damage(self) -> tuple[str, ...]:
        """``problems``, and one sentence for whatever else is missing or cannot be right; reads all but the gallery."""
        return (*self.problems, *(found for found in self._damage() if found))

    def _damage(self) -> Iterator[str | None]:
        signed = self.identity.get("signature")
        if self.config and signed and signed != signature(dict(self.config)):
            yield (
                f"{CONFIG} is not the one that {IDENTITY} was written for (signature {signature(dict(self.config))}, "
                f"there {signed}): one of them was changed, or is of another version of beni"
            )
        yield from (self._metrics[1], self._scores.problem)
        if self.state != "finished":
            return
        yield self._spec[1]
        step, steps = self.status.get("step", 0), _mapping(self.config.get("train")).get("steps")
        if steps is not None and step < steps:
            yield f"{STATUS} says finished at step {step}, and {CONFIG} has {steps} steps"
        last = max((row["step"] for row in self.metrics), default=None)
        if last is None or last < step:
            yield f"{METRICS} ends at step {last}, and the run at step {step}" if last else f"{METRICS} is empty"
        scored = self.status.get("scored")
        rows = self._scores.rows.get(scored["step"], 0) if scored else 0
        if scored and rows != scored["rows"]:
            yield f"{SCORES} has {rows} of {scored['rows']} rows of the last evaluation"
        if scored and not any(
            line.get("step") == scored["step"] and any(key.startswith("eval/") for key in line) for line in self.metrics
        ):
            yield f"{METRICS} has no line of the last evaluation, at step {scored['step']}"

    @cached_property
    def _metrics(self) -> tuple[list[dict[str, Any]], str | None]:
        return read_jsonl(self.folder / METRICS, shape.OF_METRICS_ROW)

    @cached_property
    def _scores(self) -> Scores:
        return read_scores(self.folder / SCORES)

    @cached_property
    def _spec(self) -> tuple[dict[str, Any], str | None]:
        return read_json(self.folder / SPEC, shape.OF_SPEC)

    def series(self, key: str) -> list[tuple[int, float]]:
        """The finite values of one metric by step. A resumed run writes some steps again: the later line counts."""
        points: dict[int, float] = {}
        for row in self.metrics:
            value = number(row.get(key))
            if value is not None and math.isfinite(value):
                points[row["step"]] = value
        return sorted(points.items())

    def answers(self, variant: str = "true") -> Answers | None:
        """The rows of scores.jsonl as columns, of the last evaluation that scored this variant; None without any."""
        return self._scores.variants.get(variant)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that scores.jsonl has rows of, in their order there."""
        return tuple(self._scores.variants)

    def examples(self, variant: str = "true") -> dict[str, dict[str, Any]]:
        """example id -> its row in scores.jsonl, of the last evaluation that scored this variant."""
        answers = self.answers(variant)
        rows = [row for row in self._rows if answers and row["variant"] == variant and row["step"] == answers.step]
        return {row["id"]: row for row in rows}

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / SCORES, shape.OF_SCORES_ROW)[0]

    def samples_per_s(self) -> float | None:
        """Training throughput: from status.json, else the median over the lines of metrics.jsonl."""
        told = number(self.status.get("samples_per_s"))
        logged = [value for _, value in self.series("train/samples_per_s")]
        return statistics.median(logged) if told is None and logged else told

    def trained_parameters(self) -> int | None:
        """Parameters that receive gradients, from status.json, else from the spec table."""
        parts = _mapping(self.status.get("parameters")).values()
        counted = [number(_mapping(part).get("trained")) for part in parts]
        counted = counted or [number(_mapping(row).get("trained")) for row in self.spec.get("rows") or ()]
        known = [value for value in counted if value is not None]
        return int(sum(known)) if known else None


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in nothing but their seed. ``label`` says what sets the arm apart within its study."""

    label: str
    runs: tuple[Run, ...]

    @cached_property
    def finished(self) -> dict[int | None, Run]:
        """seed -> finished run; of two runs with one seed the later one."""
        done = [run for run in self.runs if run.state == "finished"]
        return {run.seed: run for run in sorted(done, key=lambda run: (run.seed is None, run.seed or 0, _age(run)))}

    @property
    def failed(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "failed")


def number(value: object) -> float | None:
    """A JSON number as float; ``None`` for anything else (``true`` is not a number)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def collect_run(folder: Path | str) -> Run:
    """Reads one run folder. What is missing or damaged ends up in ``Run.problems``."""
    folder = Path(folder)
    config, problem = read_frozen(folder)
    identity, identity_problem = read_json(folder / IDENTITY, shape.OF_IDENTITY)
    status, status_problem = read_status_or_why(folder)
    if status.get("state") == "queued" and not (folder / IDENTITY).exists():
        identity_problem = None  # it is written when the run begins
    problems = tuple(found for found in (problem, identity_problem, status_problem) if found)
    origin = {} if identity else read_json(folder / ORIGIN, shape.OF_ORIGIN)[0]
    return Run(folder, config, identity, status, problems, origin=origin)


Fates = Callable[[Sequence[Path]], Mapping[Path, Fate]]
"""Run folders -> what became of them."""


def runs_of(study: Path) -> list[Path]:
    """Folders of the runs in a study, damaged ones among them, or the study itself where it is a run."""
    if _is_run(study):
        return [study]
    return [path for path in sorted(study.glob("*/")) if _is_run(path) and not is_set_aside(path)]


def collect_study(path: Path | str, fates: Fates | None = None) -> list[Run]:
    """All runs of ``runs/<study>``, in the order of the sweeps that launched them; one that none did, by its start.

    Args:
        fates: asked once for all of them; None believes each status.json.

    Raises:
        BeniError: the folder does not exist, is itself a run, or holds no run.
    """
    path = Path(path)
    wanted = "a study folder runs/<study> that holds run folders (each with config.yaml and status.json)"
    if not path.is_dir():
        found = "not a folder" if path.exists() else "no such folder"
        raise BeniError(f"{path}: {found}; expected {wanted}\n  fix: name such a folder")
    if _is_run(path):
        raise BeniError(f"{path} is one run; expected {wanted}\n  fix: python -m beni.compare {path.parent}")
    folders = runs_of(path)
    runs = [collect_run(folder) for folder in folders]
    if not runs:
        raise BeniError(f"{path} holds no run; expected {wanted}")
    known = fates(folders) if fates else {}
    return sorted((replace(run, fate=known.get(run.folder)) for run in runs), key=_age)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> ``{"train.seed": 0, ...}``; lists and empty mappings are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Groups runs that differ only in their seed (and in what cannot change a result), by the first run of each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        leaves = _settings(run)
        key = json.dumps(leaves, sort_keys=True, default=str) if leaves else f"unreadable {run.name}"
        groups.setdefault(key, []).append(run)
    members = list(groups.values())
    labels = _labels([group[0] for group in members])
    return [Arm(label, tuple(group)) for label, group in zip(labels, members, strict=True)]


def _labels(firsts: list[Run]) -> list[str]:
    """One label an arm: the choices that vary, then the values that vary among arms with the same choice. A value that
    ``study.match`` has chosen is left out, unless arms could not be told apart without it.
    """
    short = [" ".join(parts) for parts in _varying(firsts, without_chosen=True)]
    if len(set(short)) < len(short):
        short = [" ".join(parts) for parts in _varying(firsts)]
    labels: list[str] = []
    for index, (run, varying) in enumerate(zip(firsts, short, strict=True)):
        match = _NAME.match(run.name)
        label = varying or (match["choices"] if match else run.name)
        labels.append(f"{label} #{index + 1}" if label in labels else label)
    return labels


def _varying(firsts: list[Run], *, without_chosen: bool = False) -> Iterator[list[str]]:
    """Yields what sets each arm apart, as overrides."""
    choices = [_mapping(run.config.get("choices")) for run in firsts]
    leaves = [_settings(run) for run in firsts]
    groups = dict.fromkeys(name for chosen in choices for name in chosen if name not in NOT_IN_LABELS)
    keys = dict.fromkeys(key for one in leaves for key in one)
    alike = {key for key in keys if all(one.get(key, _ABSENT) == leaves[0].get(key, _ABSENT) for one in leaves)}
    varying = [name for name in groups if len({str(chosen.get(name)) for chosen in choices}) > 1]
    for index, run in enumerate(firsts):
        study = _mapping(run.config.get("study"))
        chosen_key = study.get("solve") if without_chosen and study.get("match") is not None else None
        parts = [f"{name}={plain(choices[index][name])}" for name in varying if name in choices[index]]
        for key, value in leaves[index].items():
            owner = next((name for name in varying if key.startswith(f"{name}.")), None)
            rivals = (
                other
                for other, chosen in zip(leaves, choices, strict=True)
                if owner is None or chosen.get(owner) == choices[index].get(owner)
            )
            if key in alike or key == chosen_key or key.endswith("_target_"):
                continue
            if any(other.get(key, _ABSENT) != value for other in rivals):
                parts.append(f"{key}={plain(value)}")
        yield parts


def plain(value: object) -> str:
    """A config value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _settings(run: Run) -> dict[str, Any]:
    """What makes the arm: the leaves that can change a result, without the seed; none where the config is damaged."""
    if not run.config:
        return {}
    leaves = flatten(relevant(dict(run.config)))
    leaves.pop("train.seed", None)
    return leaves


def _age(run: Run) -> tuple[str, int, str]:
    """When the sweep of a run was launched, and its place there; for a run without any, when it was started."""
    launched = run.identity.get("launched") or run.origin.get("launched")
    started = launched or run.identity.get("created") or run.status.get("started") or "9"  # "9": unknown comes last
    place = run.identity.get("place", run.origin.get("place", 0))
    return str(started), place, run.name


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and any((folder / name).is_file() for name in _RUN_FILES)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
