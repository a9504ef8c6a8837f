"""What a run is: the signature of everything that can change its result, its folder, and where it came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from beni.components import PART_GROUPS
from beni.config.check import TRUST_VARIABLE
from beni.paths import PACKAGE, conf_dir
from beni.redact import redacted_override
from beni.runs.code import is_copy, running_code

IRRELEVANT = (
    "choices",
    "dropped",
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
    "images.retries",
    "images.timeout",
    "images.idle_timeout",
    "images.max_bad",
    "records",
    "train.guard.most",
    "eval.every",
    "eval.gallery",
    "eval.attention",
    "eval.ablations",
    "eval.batch_size",
    "compute.feature_bank",
    "compute.workers",
)
"""Keys that cannot change what is learned or how it is scored, and so are no part of a run's signature: limits among
them, which end a run or do not.
"""

FILES = ("path", "heldout_path", "images", "root")
"""Keys of ``data`` that name files, at any depth; they may be spelt in several ways."""

_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Flags of Hydra's with a value, that say where options come from."""

UNPRUNED = "beni.pruner.none.NoPruner"
"""The pruner that takes nothing out."""

IN_NAME = tuple(group for group in PART_GROUPS if group not in ("tracker", "views", "fusion"))


def signature(run: dict[str, Any]) -> str:
    """Resolved run -> 8 hexadecimal digits, equal for equal results."""
    text = json.dumps(relevant(run), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def relevant(run: dict[str, Any]) -> dict[str, Any]:
    """The part of a run that its signature covers; paths as they would be spelt from the working directory."""
    limits = () if run["template"]["overlong"] == "truncate" else ("template.max_length",)  # cuts nothing, only ends
    kept = _without(run, [*IRRELEVANT, *limits])
    kept["data"] = _spelt(kept["data"])
    if kept.get("pruner", {}).get("_target_") == UNPRUNED:  # as before there were any: runs keep their names
        del kept["pruner"]
    if kept["train"]["init_from"] is not None:
        kept["train"] = {**kept["train"], "init_from": _plain_path(kept["train"]["init_from"])}
    return kept


def _without(values: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Nested values without some dotted keys."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        inner = [path.partition(".")[2] for path in paths if path.startswith(f"{key}.")]
        if key not in paths:
            kept[key] = _without(value, inner) if inner and isinstance(value, dict) else value
    return kept


def _spelt(node: Any) -> Any:
    """A data node whose paths are spelt in one way."""
    if not isinstance(node, dict):
        return node
    return {
        key: _plain_path(value) if key in FILES and isinstance(value, str) else _spelt(value)
        for key, value in node.items()
    }


def _plain_path(path: str) -> str:
    """A path without detours: relative below the working directory, absolute elsewhere."""
    if "://" in path:
        return path
    whole, here = os.path.abspath(os.path.expanduser(path)), os.path.join(os.getcwd(), "")
    return whole.removeprefix(here)


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


def origin(run: Mapping[str, Any], command: str | None = None) -> dict[str, Any]:
    """Where a run comes from: its command, the question that it is to answer, and the code that it is started with.

    Whoever hands a run over to another process writes this into its folder: that process was called otherwise, and
    runs a copy of the code, beside which nothing is known of its commit.

    Args:
        command: None takes that of this process.
    """
    return {
        "command": command or (command_line(sys.argv[1:]) if _is_command() else "beni.train(run)"),
        "hypothesis": _hypothesis(run),
        "git": _git(),
        "code": running_code(),
    }


def provenance(run: dict[str, Any]) -> dict[str, Any]:
    """What identity.json says before training starts: signature, command, code, versions."""
    return {
        "signature": signature(run),
        "name": run_folder(run).name,
        "created": now(),
        **origin(run),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("beni", "torch", "transformers", "peft", "hydra-core")},
        },
        "hashes": {},
    }


def command_line(words: Sequence[str]) -> str:
    """The command that repeats a run, as a shell reads it, with the environment that it needs and without secrets.

    Args:
        words: what follows ``beni.train``.
    """
    env = os.environ
    start = ["python", "-m", "beni.train"]
    if env.get("TORCHELASTIC_RUN_ID") and env.get("LOCAL_WORLD_SIZE"):
        machines = int(env.get("GROUP_WORLD_SIZE", 1))
        start = ["torchrun", f"--nproc-per-node={env['LOCAL_WORLD_SIZE']}", "-m", "beni.train"]
        start[1:1] = [f"--nnodes={machines}"] if machines > 1 else []
    trusted = env.get(TRUST_VARIABLE)
    before = f"{TRUST_VARIABLE}={shlex.quote(trusted)} " if trusted else ""
    return before + shlex.join([*start, *map(redacted_override, words)])


def arm_command(overrides: Sequence[str]) -> str:
    """The command that repeats one arm of the multirun that this process is: its overrides, and the flags of all."""
    words, flags = iter(sys.argv[1:]), []
    for word in words:
        if word in _FLAGS:
            flags += [word, next(words, "")]
        elif word.startswith(tuple(f"{flag}=" for flag in _FLAGS)):
            flags.append(word)
    return command_line([*flags, *overrides])


def _hypothesis(run: Mapping[str, Any]) -> str | None:
    """The comment at the head of the run's experiment, without commands; None where it has none, or is not found."""
    name = run["choices"].get("experiment")
    folders = [conf_dir()]
    for word, following in pairwise([*sys.argv[1:], ""]):
        flag, _, value = word.partition("=")
        if flag in _FLAGS:
            folders.append(Path(value or following))
    for folder in reversed(folders) if name else ():
        try:
            lines = (folder / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        comments = takewhile(lambda line: line.startswith("#"), lines)
        told = [line.lstrip("# ").strip() for line in comments if "@package" not in line]
        return " ".join(line for line in told if line and not line.startswith("python ")) or None
    return None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_command() -> bool:
    return Path(sys.argv[0]).name in ("train.py", "beni-train")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit and whether the tree differs from it, of the checkout beni runs from; nulls outside one, and for a copy,
    which lies in a checkout by chance.
    """
    if is_copy(PACKAGE):
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
