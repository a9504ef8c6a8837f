"""What a run is: the signature of everything that can change its result, its folder, and where it came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beni.components import PART_GROUPS
from beni.paths import PACKAGE

IRRELEVANT = (
    "choices",
    "tracker",
    "launcher",
    "log",
    "paths",
    "study",
    "checkpoint",
    "images.concurrency",
    "images.per_host",
    "images.cache",
    "images.cache_gib",
    "images.ahead",
    "eval.gallery",
    "eval.batch_size",
    "compute.feature_bank",
    "compute.workers",
)
"""Keys that cannot change what is learned or how it is scored, and so are no part of a run's signature."""

IN_NAME = tuple(group for group in PART_GROUPS if group not in ("tracker", "views", "fusion"))


def signature(run: dict[str, Any]) -> str:
    """Resolved run -> 8 hexadecimal digits, equal for equal results."""
    text = json.dumps(relevant(run), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def relevant(run: dict[str, Any]) -> dict[str, Any]:
    """The part of a run that its signature covers."""
    kept: dict[str, Any] = {}
    for key, value in run.items():
        if key in IRRELEVANT:
            continue
        inner = {k.partition(".")[2] for k in IRRELEVANT if k.startswith(f"{key}.")}
        kept[key] = {k: v for k, v in value.items() if k not in inner} if isinstance(value, dict) else value
    return kept


def run_folder(run: dict[str, Any]) -> Path:
    """``<paths.runs>/<study>/<choices>-s<seed>-<signature>``, the same for every rank and every repetition."""
    choices = [run["choices"].get(group, "custom") for group in IN_NAME]
    name = "-".join(choice.replace("/", "_") for choice in choices if choice not in ("none", "auto"))
    return Path(run["paths"]["runs"]) / run["study"]["name"] / f"{name}-s{run['train']['seed']}-{signature(run)}"


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys in which two runs differ, as ``key: ours -> theirs`` lines."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def provenance(run: dict[str, Any]) -> dict[str, Any]:
    """What identity.json says before training starts: signature, command, code, versions."""
    return {
        "signature": signature(run),
        "name": run_folder(run).name,
        "created": now(),
        "command": " ".join(["python", "-m", "beni.train", *sys.argv[1:]]) if _is_command() else "beni.train(run)",
        "git": _git(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("beni", "torch", "transformers", "peft", "hydra-core")},
        },
        "hashes": {},
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_command() -> bool:
    return Path(sys.argv[0]).name == "train.py"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit and whether the tree differs from it, of the checkout beni runs from; nulls outside one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
