"""The key or option that was probably meant. Needs neither torch nor a composition: a mistake is answered at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from beni.config.sections.launcher import Slurm
from beni.paths import conf_dir

MOVED = {
    **{
        f"train.{key}": f"compute.{key}"
        for key in (
            *("device", "precision", "threads", "workers", "layout", "loss", "compile"),
            *("activation_checkpointing", "memory_budget", "feature_bank"),
        )
    },
    "train.log_every": "log.every",
    **{f"train.{key}": f"log.{key}" for key in ("profile", "watchdog_s", "peak_tflops")},
    **{f"hydra.launcher.{key}": f"launcher.{key}" for key in Slurm.__dataclass_fields__},
}
"""Keys that had another name, and the name they have now."""

SWEPT = "hydra.sweeper.params."
"""Mapping whose keys have dots themselves, which an override takes for those between sections."""


def closest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate most like ``word``, or None when none is like it."""
    found = difflib.get_close_matches(word, sorted(set(candidates)), n=1, cutoff=cutoff)
    return found[0] if found else None


def unknown_key(path: str, tree: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """What is wrong with a dotted key that nobody reads, and what to write instead.

    Args:
        path: the whole key, for instance ``resampler.depthh``.
        tree: the run, as far as it was composed.
        choices: the option chosen for each group.
    """
    if path in MOVED:
        return f"unknown key {path}: it is {MOVED[path]} now\n  fix: set {MOVED[path]} instead"
    if path.startswith(SWEPT):
        key = path.removeprefix(SWEPT)
        return (
            f"unknown key {path}: the keys of {SWEPT[:-1]} have dots, which divide sections here\n"
            f"  fix: write '{SWEPT[:-1]}={{{key}: ...}}', or leave it out and set {key}"
        )
    node: Any = tree
    found: list[str] = []
    rest = path.split(".")
    while len(rest) > 1 and isinstance(node, Mapping) and rest[0] in node:
        node = node[rest[0]]
        found.append(rest.pop(0))
    where = ".".join(found)
    if not isinstance(node, Mapping):
        shown = where if node is None else f"{where}={node}"
        return f"unknown key {path}: {shown} is a value, not a section\n  fix: leave out {path}"
    known = [str(key) for key in node if key not in ("_target_", "hydra", "choices")]
    if close := closest(rest[0], [key for key in known if key != rest[0]]):
        return f"unknown key {path}\n  fix: did you mean {'.'.join([*found, close, *rest[1:]])}?"
    owner = f"{where}={choices[where]}" if choices.get(where) else where or "a run"
    message = f"unknown key {path}; {owner} has {'the keys ' + ', '.join(known) if known else 'no keys'}"
    if len(found) == 1 and (other := _other_options(where, rest[0])):
        options, key = other
        return f"{message}\n  fix: did you mean {where}.{key} with {where}={', '.join(options)}?"
    if not found and (leaf := _leaf(rest[-1], tree)):
        return f"{message}\n  fix: did you mean {leaf}?"
    return f"{message}\n  fix: leave out {path}"


def _other_options(group: str, key: str) -> tuple[list[str], str] | None:
    """The options of ``group`` that have a key like ``key``, and that key."""
    by_key: dict[str, list[str]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        for known in yaml.safe_load(path.read_text(encoding="utf-8")) or {}:
            by_key.setdefault(str(known), []).append(path.stem)
    close = closest(key, [known for known in by_key if known != "_target_"], cutoff=0.75)
    return (by_key[close], close) if close else None


def _leaf(key: str, tree: Mapping[str, Any]) -> str | None:
    """A key of any section that is called like ``key``."""
    by_name = {path.rpartition(".")[2]: path for path in reversed(list(_leaves(tree)))}
    close = closest(key, by_name, cutoff=0.8)
    return by_name[close] if close else None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if key in ("hydra", "choices"):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
