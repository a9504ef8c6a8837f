"""Everything about a composed run that can be judged without importing torch: keys, types, targets, ranges.

Hydra accepts any key behind ``+`` and knows nothing of a part's signature, so the composed run is checked as a whole.
Each problem names the key, the value, what was expected and, for a misspelling, the key that was probably meant.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from beni.config import schema
from beni.config.adapters import adapter_ranges
from beni.config.optim import OPTIMIZERS, Optim, optim_ranges
from beni.config.signature import Key, keys_of
from beni.config.suggest import unknown_key
from beni.config.types import example, expectation, fits
from beni.errors import ConfigError

TRUST_VARIABLE = "BENI_TRUSTED"
"""Environment variable with further trusted prefixes of ``_target_``, separated by commas. Never read from a config."""

GENERATED = ("choices",)
"""Top-level keys that beni itself writes into the frozen run."""

PLAN_MODE = f"Literal{list(get_args(schema.PlanMode))}"
"""``schema.PlanMode`` spelt out, since annotations are compared as text."""


def check(run: dict[str, Any]) -> None:
    """A composed, resolved run as plain dicts.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    known = (*schema.PART_GROUPS, *schema.SECTIONS, *GENERATED)
    tree = {key: value for key, value in run.items() if key in known}
    problems = [unknown_key(key, tree, run.get("choices", {})) for key in run if key not in known]
    problems += [
        f"{key} is missing from the run\n  fix: leave out ~{key}"
        for key in known
        if key not in run and key not in GENERATED
    ]
    for group in schema.PART_GROUPS:
        if group in run:
            problems += _check_part(group, run[group], run.get("choices", {}))
    for name, section in schema.SECTIONS.items():
        if name == "optim" and name in run:
            problems += _check_optim(run[name], run.get("choices", {}).get("optim"))
        elif name in run:
            problems += _check_section(name, run[name], section)
    if not problems:
        problems = list(_ranges(run))
    if problems:
        raise ConfigError("\n".join(problems))


def trusted_prefixes() -> tuple[str, ...]:
    """Prefixes a ``_target_`` may have: ``beni.`` and those of the environment variable ``BENI_TRUSTED``."""
    extra = (p.strip() for p in os.environ.get(TRUST_VARIABLE, "").split(","))
    return ("beni.", *(p.rstrip(".") + "." for p in extra if p))


def untrusted(node: Any, where: str = "") -> list[str]:
    """Every ``_target_`` below ``node`` that is no class or function defined under a trusted prefix, as a problem.

    The prefix alone would not do: ``beni.run.os.system`` has it too.
    """
    if isinstance(node, list):
        return [problem for i, item in enumerate(node) for problem in untrusted(item, f"{where}[{i}]")]
    if not isinstance(node, dict):
        return []
    problems = []
    target = node.get("_target_")
    if target is not None and not str(target).startswith(trusted_prefixes()):
        package = str(target).split(".")[0]
        problems.append(
            f"{where}._target_={target} is not trusted; expected a path under {', '.join(trusted_prefixes())}\n"
            "  fix: choose an option of the group"
            + ("" if _is_stdlib(package) else f", or trust the package: {TRUST_VARIABLE}={package} in the environment")
        )
    elif target is not None:
        try:
            keys_of(str(target))
        except LookupError as error:
            problems.append(f"{where}._target_: {error}\n  fix: choose an option of the group")
    for key, value in node.items():
        problems += untrusted(value, f"{where}.{key}" if where else str(key))
    return problems


def _is_stdlib(package: str) -> bool:
    return package in sys.stdlib_module_names or package == "builtins"


def _check_part(group: str, node: Any, choices: Mapping[str, Any]) -> list[str]:
    if not isinstance(node, dict):
        return [f"{group}={node!r} is not an option; expected the name of a file in conf/{group}/"]
    if problems := untrusted(node, group):
        return problems
    target = node.get("_target_")
    if target is None:
        return [f"{group} has no _target_\n  fix: choose one option of the group, for instance {group}=none"]
    return _check_node(group, node, choices)


def _check_node(path: str, node: dict[str, Any], choices: Mapping[str, Any]) -> list[str]:
    """A node with a trusted ``_target_`` against its signature, and so those within it."""
    keys = keys_of(str(node["_target_"]))
    tree: Any = {name: node.get(name) for name in keys}
    for name in reversed(path.split(".")):
        tree = {name: tree}
    given = [key for key in node if key not in ("_target_", "_partial_")]
    problems = [unknown_key(f"{path}.{key}", tree, choices) for key in given if key not in keys]
    problems += [_missing(f"{path}.{k.name}", k.annotation) for k in keys.values() if _absent(k, node)]
    problems += [
        _wrong_type(f"{path}.{name}", node[name], keys[name].annotation)
        for name in given
        if name in keys and not fits(node[name], keys[name].annotation)
    ]
    for name in given:
        values = node[name].items() if isinstance(node[name], dict) else ()
        for key, value in values:
            if isinstance(value, dict) and "_target_" in value:
                problems += _check_node(f"{path}.{name}.{key}", value, choices)
    return problems


def _absent(key: Key, node: dict[str, Any]) -> bool:
    return key.required and key.name not in node


def _missing(path: str, annotation: str) -> str:
    return f"{path} is missing; expected {expectation(annotation)}\n  fix: set {path}={example(annotation)}"


def _wrong_type(path: str, value: Any, annotation: str) -> str:
    return f"{path}={_shown(value)}, expected {expectation(annotation)}\n  fix: set {path}={example(annotation, value)}"


def _shown(value: Any) -> str:
    """A value as one writes it in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else repr(value)


def _check_section(path: str, node: Any, section: type[Any]) -> list[str]:
    fields = _fields(section)
    if not isinstance(node, dict):
        return [
            f"{path}={node!r} is not a section; expected the keys {', '.join(fields)}\n"
            f"  fix: set {path}.{list(fields)[-1]}=..."
        ]
    problems = untrusted(node, path)
    inner: Any = dict.fromkeys(fields)
    for name in reversed(path.split(".")):
        inner = {name: inner}
    problems += [unknown_key(f"{path}.{key}", inner, {}) for key in node if key not in fields]
    hints = get_type_hints(section)
    for name, annotation in fields.items():
        if name not in node:
            problems.append(_missing(f"{path}.{name}", annotation))
        elif dataclasses.is_dataclass(hints[name]):
            problems += _check_section(f"{path}.{name}", node[name], hints[name])
        elif not fits(node[name], annotation):
            problems.append(_wrong_type(f"{path}.{name}", node[name], annotation))
    return problems


def _check_optim(node: Any, choice: str | None) -> list[str]:
    """Which keys there are depends on the optimizer."""
    if not isinstance(node, dict):
        return _check_section("optim", node, Optim)
    name, annotation = node.get("optimizer"), _fields(Optim)["optimizer"]
    if not fits(name, annotation):
        return [_wrong_type("optim.optimizer", name, annotation)]
    if choice in OPTIMIZERS and name != choice:
        return [f"optim.optimizer={name}, but optim={choice} has another one's values\n  fix: set optim={name}"]
    return _check_section("optim", node, OPTIMIZERS[str(name)])


def _fields(section: type[Any]) -> dict[str, str]:
    return {field.name: str(field.type).replace("PlanMode", PLAN_MODE) for field in dataclasses.fields(section)}


AT_LEAST = {
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulation": 1,
    "train.log_every": 1,
    "train.seed": 0,
    "train.threads": 0,
    "train.workers": 0,
    "train.watchdog_s": 0,
    "optim.min_lr": 0,
    "optim.weight_decay": 0,
    "optim.clip": 0,
    "template.max_length": 1,
    "schedule.tokens": 1,
    "schedule.images": 1,
    "schedule.window": 1,
    "schedule.tokens_per_image": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "images.concurrency": 1,
    "images.per_host": 1,
    "images.retries": 0,
    "images.max_pixels": 1,
    "images.min_side": 1,
    "images.redirects": 0,
    "images.ahead": 0,
    "images.max_bad": 0,
    "eval.every": 0,
    "eval.examples": 0,
    "eval.gallery": 0,
    "eval.batch_size": 1,
}
"""Smallest value of each number that has one."""


def profiled_steps(value: str | int) -> tuple[int, int] | None:
    """First and last step of ``train.profile``; None where it is neither ``first:last`` nor a number."""
    first, _, last = str(value).partition(":")
    return (int(first), int(last or first)) if first.isdecimal() and (last or first).isdecimal() else None


def _ranges(run: dict[str, Any]) -> Iterable[str]:
    """Rules that no type expresses."""
    for path, least in AT_LEAST.items():
        section, _, name = path.partition(".")
        value = run[section][name]
        if value != "auto" and not value >= least:  # not "<": nan must be refused as well
            yield f"{path}={value}, expected at least {least}\n  fix: set {path}={least} or more"
    train = run["train"]
    if train["accumulation"] > train["batch_size"]:
        yield (
            f"train.accumulation={train['accumulation']} micro-batches cannot share "
            f"train.batch_size={train['batch_size']} samples\n"
            f"  fix: set train.accumulation={train['batch_size']} or less"
        )
    yield from _phase_ranges(train)
    schedule = run["schedule"]
    if schedule["cycle"] and schedule["modality"] != "grouped":
        yield (
            f"schedule.cycle={schedule['cycle']} keeps modalities apart, but schedule.modality={schedule['modality']}\n"
            "  fix: set schedule.modality=grouped or schedule.cycle=[]"
        )
    if schedule["unit"] == "pack" and schedule["group"] == "length":
        yield (
            "schedule.group=length sorts single samples, but schedule.unit=pack\n"
            "  fix: set schedule.group=none or schedule.unit=sample"
        )
    yield from optim_ranges(run)
    best = run["checkpoint"]["keep_best"]
    if best is not None and not best.startswith("eval/"):
        yield (
            f"checkpoint.keep_best={best}, expected a metric of the evaluation\n"
            "  fix: set checkpoint.keep_best=eval/accuracy, eval/loss or null"
        )
    elif best is not None and not run["eval"]["every"]:
        yield (
            f"checkpoint.keep_best={best} compares evaluations, but eval.every=0 makes only the last\n"
            "  fix: set eval.every, or checkpoint.keep_best=null"
        )
    peak = train["peak_tflops"]
    if peak is not None and not 0 < peak < float("inf"):
        yield f"train.peak_tflops={peak}, expected a number above 0 or null\n  fix: set train.peak_tflops=null"
    if train["watchdog_s"] == float("inf"):
        yield "train.watchdog_s=inf, expected a number of seconds\n  fix: set train.watchdog_s=0 to wait for ever"
    images = run["images"]
    for name in ("timeout", "idle_timeout", "max_mib", "cache_gib"):
        if not 0 < images[name] < float("inf"):
            yield f"images.{name}={images[name]}, expected a number above 0\n  fix: set images.{name}=10"
    if images["max_bad"] > 1:
        yield f"images.max_bad={images['max_bad']}, expected a share of all pictures\n  fix: set images.max_bad=0.05"
    if train["profile"] is not None:
        steps = profiled_steps(train["profile"])
        if steps is None or not 1 <= steps[0] <= steps[1] <= train["steps"]:
            yield (
                f"train.profile={train['profile']}, expected steps first:last between 1 and {train['steps']}\n"
                "  fix: set train.profile=4:6, or null"
            )
    guard = train["guard"]
    for key, least in (("threshold", 1), ("window", 8), ("most", 0)):
        if not guard[key] >= least:
            yield f"train.guard.{key}={guard[key]}, expected at least {least}\n  fix: set train.guard.{key}={least}"
    if not 0 <= train["memory_budget"] <= 1:
        yield (
            f"train.memory_budget={train['memory_budget']}, expected a share in [0, 1]\n"
            "  fix: set train.memory_budget=0.5"
        )
    if train["activation_checkpointing"] == "memory_budget" and not train["compile"]:
        yield (
            "train.activation_checkpointing=memory_budget is the compiler's choice, but train.compile=false\n"
            "  fix: set train.compile=true or train.activation_checkpointing=selective"
        )
    bank, vision = train["feature_bank"], train["plan"]["vision"]
    if bank is not None and not bank.strip():
        yield "train.feature_bank is empty, expected a folder or null\n  fix: set train.feature_bank=null"
    elif bank is not None and vision not in ("frozen", "auto"):
        yield (
            f"train.feature_bank={bank} keeps the features of a frozen encoder, but train.plan.vision={vision}\n"
            "  fix: set train.plan.vision=frozen or train.feature_bank=null"
        )
    if bank is not None and run["fsdp"]["frozen"] == "shard":
        yield (
            "fsdp.frozen=shard has all processes encode together, but train.feature_bank lets each leave out what it "
            "has\n  fix: set fsdp.frozen=replicate or train.feature_bank=null"
        )
    yield from _fsdp_ranges(run["fsdp"])
    yield from adapter_ranges(run)
    name = run["study"]["name"]
    if not name.strip() or "/" in name or name.startswith("."):
        yield f"study.name={name}, expected the name of a folder below paths.runs\n  fix: set study.name=default"
    if not run["paths"]["runs"].strip():
        yield "paths.runs is empty, expected a folder\n  fix: set paths.runs=runs"


def _fsdp_ranges(fsdp: Mapping[str, Any]) -> Iterable[str]:
    """Of what only some modes have."""
    size, mode = fsdp["shard_size"], fsdp["mode"]
    if fsdp["offload"] and mode == "none":
        yield (
            "fsdp.offload=true with fsdp.mode=none, which keeps the model where it computes\n"
            "  fix: set fsdp=full, for one process too, or fsdp.offload=false"
        )
    if fsdp["frozen"] == "shard" and mode in ("none", "ddp"):
        yield (
            f"fsdp.frozen=shard with fsdp.mode={mode}, under which every process holds the whole model\n"
            "  fix: set fsdp=full or fsdp=hybrid, or fsdp.frozen=replicate"
        )
    if size is not None and (size < 1 or mode != "hybrid"):
        yield (
            f"fsdp.shard_size={size} with fsdp.mode={mode}, expected null, or under hybrid at least 1\n"
            "  fix: set fsdp.shard_size=null, or choose fsdp=hybrid"
        )


def _phase_ranges(train: Mapping[str, Any]) -> Iterable[str]:
    """Of the average of the weights, and of when components begin to train."""
    if not 0 <= train["ema"] < 1:
        yield f"train.ema={train['ema']}, expected a decay in [0, 1)\n  fix: set train.ema=0.999, or 0 for none"
    for component, share in train["thaw"].items():
        key = f"train.thaw.{component}={share}"
        if not 0 <= share < 1:
            yield f"{key}, expected a share of the steps in [0, 1)\n  fix: set train.thaw.{component}=0.1"
        elif share and train["plan"][component] == "frozen":
            yield (
                f"{key}, but train.plan.{component}=frozen never trains\n"
                f"  fix: set train.plan.{component}=full or train.thaw.{component}=0"
            )
        elif share and math.ceil(share * train["steps"]) >= train["steps"]:
            yield (
                f"{key} leaves {component} no step of train.steps={train['steps']}\n"
                f"  fix: set train.thaw.{component} lower, or train.plan.{component}=frozen"
            )
