"""Damage to the files of a run folder, drawn from a seed: cut, empty, of another type, not UTF-8, gone, a folder."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from beni.runs import shape
from beni.runs.shape import Must

SHAPES = {
    "config.yaml": shape.OF_CONFIG,
    "identity.json": shape.OF_PROOF,
    "status.json": shape.OF_STATUS,
    "spec.json": shape.OF_SPEC,
    "metrics.jsonl": None,
    "scores.jsonl": None,
}


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    most = content.find(b"\nchoices:") if path.suffix == ".yaml" else -1  # behind it a key less is no fault
    path.write_bytes(content[: rng.randrange(1, most if most > 1 else len(content) - 2)])


def _cut_at_a_line(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: rng.randrange(len(lines))]))


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _of_another_type(path: Path, rng: random.Random) -> None:
    path.write_text(rng.choice(["[1]", "3", '"text"', "null", "true", "{}", "[[]]"]) + "\n")


def _not_utf8(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) // 2)
    path.write_bytes(content[:at] + b"\xff\xfe\x00" + content[at + 3 :])


def _zeros(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def _a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _a_value_of_another_type(path: Path, rng: random.Random) -> None:
    """Of a key that readers use; for lines, of the step."""
    wrong = rng.choice([{"a": [1]}, [None], True])  # a text may stand where null does, and a number where another does
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        keys = [key for key in value if key in SHAPES[path.name] and _differ(value[key], wrong)]
        value[rng.choice(keys)] = wrong
        path.write_text(json.dumps(value))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(json.loads(lines[at]) | {"step": wrong})
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(re.sub(r"(?m)^  seed: \d+$", f"  seed: {json.dumps(wrong)}", path.read_text()))


def _a_changed_number(path: Path, rng: random.Random) -> None:
    """One that can change a result, in the frozen config; elsewhere a line less."""
    if path.suffix == ".yaml":
        path.write_text(re.sub(r"(?m)^  batch_size: (\d+)$", r"  batch_size: \g<1>1", path.read_text(), count=1))
    else:
        _cut_at_a_line(path, rng)


def _differ(value: Any, wrong: Any) -> bool:
    return type(value) is not type(wrong)


KINDS = (
    _cut,
    _cut_at_a_line,
    _empty,
    _of_another_type,
    _not_utf8,
    _zeros,
    _gone,
    _a_folder,
    _a_value_of_another_type,
    _a_changed_number,
)


def must_be_there(name: str) -> list[str]:
    """Keys without which a file is none."""
    return [key for key, inner in (SHAPES[name] or {}).items() if isinstance(inner, Must)]


def damage(folder: Path, rng: random.Random, files: tuple[str, ...] = tuple(SHAPES)) -> tuple[str, str]:
    """Damages one file of a run folder; its name and what was done."""
    name, kind = rng.choice(files), rng.choice(KINDS)
    kind(folder / name, rng)
    return name, kind.__name__.strip("_").replace("_", " ")
