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


READS_LEVELS = (
    "beni.resampler.tokenpacker.TokenPacker",
    "beni.resampler.molmo.Molmo",
    "beni.fusion.deepstack.DeepStack",
)
"""Parts of beni's own that read the features of ``vision.levels``; parts of other packages may."""

AT_HAND = (
    "beni.data.shapes.source.Shapes",
    "beni.data.shapes.cluttered.ClutteredShapes",
    "beni.data.stamps.Stamps",
    "beni.data.formats.text.Text",
    "beni.data.formats.text_rows.TextRows",
)
"""Sources without a picture that has to be fetched, whatever they read."""

FETCHING = (
    *("concurrency", "per_host", "retries", "timeout", "idle_timeout", "max_mib", "max_pixels", "min_side"),
    *("redirects", "private_addresses", "ahead"),
)
"""Values of ``images`` about pictures that are fetched, but for where the cache of a machine is."""


def _targets(node: Any) -> Iterator[str]:
    """The ``_target_`` of a node and of those in it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)


def _reads_levels(run: Run) -> bool:
    behind = [
        target for group in ("views", "selector", "resampler", "connector", "fusion") for target in _targets(run[group])
    ]
    return not run["vision"].get("levels") or any(t in READS_LEVELS or not t.startswith("beni.") for t in behind)


def _fetches(run: Run) -> bool:
    sources = [target for target in _targets(run["data"]) if target != "beni.data.mixture.Mixture"]
    return any(target not in AT_HAND for target in sources)


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
        lambda run: f"train.guard.spike={run['train']['guard']['spike']} and train.guard.nonfinite=halt",
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
        ("vision.levels",),
        _reads_levels,
        lambda run: f"resampler={run['choices'].get('resampler', 'none')}",
        "set resampler=tokenpacker",
    ),
    Unread(
        ("views.min_patches",),
        lambda run: not run["views"].get("fill"),
        lambda run: "views.fill=true, which scales every image to views.max_patches",
        "set views.fill=false",
    ),
    Unread(
        tuple(f"images.{key}" for key in FETCHING),
        _fetches,
        lambda run: f"data={run['choices'].get('data', 'none')}, which fetches no images",
        "choose data whose records have URLs of images",
    ),
    Unread(
        ("connector.hidden",),
        lambda run: run["connector"].get("depth", 2) > 1,
        lambda run: "connector.depth=1, which has no hidden layer",
        "set connector.depth=2",
    ),
    Unread(
        ("study.budget", "study.solve"),
        lambda run: run["study"]["match"] is not None,
        lambda run: "study.match=null",
        "set study.match=train_flops",
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
