"""Values that an override sets and nobody reads, given the other values of the run: refused, never ignored.

What an option or a preset holds besides is no mistake: it waits for the value that makes it count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Unread:
    """A value that counts under others only.

    Attributes:
        keys: dotted keys.
        counts: whether they are read in a run.
        why: the value that makes them count no more, as one writes it.
        fix: an override that makes them count.
    """

    keys: tuple[str, ...]
    counts: Callable[[Run], bool]
    why: Callable[[Run], str]
    fix: str


def _packs(run: Run) -> bool:
    return run["schedule"]["unit"] == "pack"


def _indexed(run: Run) -> bool:
    schedule = run["schedule"]
    return _packs(run) or schedule["group"] == "length" or schedule["balance"]


def _guards(run: Run) -> bool:
    return run["train"]["guard"]["spike"] != "accept"


def _leaves_out(run: Run) -> bool:
    guard = run["train"]["guard"]
    return bool({guard["spike"], guard["nonfinite"]} & {"skip", "rewind"})


UNREAD = (
    Unread(
        ("schedule.tokens", "schedule.images"),
        _packs,
        lambda run: f"schedule.unit={run['schedule']['unit']}",
        "set schedule=packs",
    ),
    Unread(
        ("schedule.window", "schedule.tokens_per_image"),
        _indexed,
        lambda run: "schedule.unit=sample, schedule.group=none and schedule.balance=false",
        "set schedule=packs or schedule.group=length",
    ),
    Unread(
        ("train.guard.threshold", "train.guard.window"),
        _guards,
        lambda run: "train.guard.spike=accept",
        "set train.guard.spike=skip",
    ),
    Unread(
        ("train.guard.most",),
        _leaves_out,
        lambda run: f"train.guard.spike={run['train']['guard']['spike']} and nonfinite=halt, which never skip a step",
        "set train.guard.nonfinite=skip",
    ),
    Unread(
        ("compute.memory_budget",),
        lambda run: run["compute"]["activation_checkpointing"] == "memory_budget",
        lambda run: f"compute.activation_checkpointing={run['compute']['activation_checkpointing']}",
        "set compute.activation_checkpointing=memory_budget compute.compile=true",
    ),
    Unread(
        ("fsdp.reshard_after_forward",),
        lambda run: run["fsdp"]["mode"] in ("full", "hybrid"),
        lambda run: f"fsdp.mode={run['fsdp']['mode']}",
        "set fsdp=full or fsdp=hybrid",
    ),
    Unread(
        ("connector.hidden",),
        lambda run: run["connector"].get("depth", 2) > 1,
        lambda run: "connector.depth=1, which has no hidden layer",
        "set connector.depth=2",
    ),
)


def unread_problems(run: Run, overrides: Mapping[str, Any]) -> Iterator[str]:
    """Values of overrides that nobody reads in this run, as problems with their fixes.

    Args:
        overrides: what they set, as a tree.
    """
    for rule in UNREAD:
        for key in rule.keys:
            if _has(overrides, key) and not rule.counts(run):
                yield f"{key} is not read under {rule.why(run)}\n  fix: {rule.fix}, or leave out {key}"
    for group in ("template", "launcher"):
        name, choice = run[group]["name"], run["choices"].get(group)
        if _has(overrides, f"{group}.name") and name != choice:
            yield (
                f"{group}.name={name} is a label, and chooses nothing: the run has {group}={choice}\n"
                f"  fix: set {group}={name}, or leave out {group}.name"
            )


def _has(tree: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
