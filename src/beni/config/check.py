"""Everything about a composed run that can be judged without importing torch: keys, types, targets, ranges.

Hydra accepts any key behind ``+`` and knows nothing of a part's signature, so the composed run is checked as a whole.
Each problem names the key, the value, what was expected and, for a misspelling, the key that was probably meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from typing import Any, get_type_hints

from beni.config import schema
from beni.config.signature import Key, keys_of
from beni.config.types import fits
from beni.errors import ConfigError

TRUST_VARIABLE = "BENI_TRUSTED"
"""Environment variable with further trusted prefixes of ``_target_``, separated by commas. Never read from a config."""

GENERATED = ("choices",)
"""Top-level keys that beni itself writes into the frozen run."""


def check(run: dict[str, Any]) -> None:
    """A composed, resolved run as plain dicts.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    known = (*schema.PART_GROUPS, *schema.SECTIONS, *GENERATED)
    problems = [unknown(key, "", known) for key in run if key not in known]
    problems += [f"section {key} is missing from the run" for key in known if key not in run and key not in GENERATED]
    for group in schema.PART_GROUPS:
        if group in run:
            problems += _check_part(group, run[group])
    for name, section in schema.SECTIONS.items():
        if name in run:
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
    """Every ``_target_`` below ``node`` that stands under no trusted prefix, as a problem."""
    if isinstance(node, list):
        return [problem for i, item in enumerate(node) for problem in untrusted(item, f"{where}[{i}]")]
    if not isinstance(node, dict):
        return []
    problems = []
    target = node.get("_target_")
    if target is not None and not str(target).startswith(trusted_prefixes()):
        problems.append(
            f"{where}._target_={target} is not trusted; expected a path under {', '.join(trusted_prefixes())}\n"
            f"  fix: choose an option of the group, or set {TRUST_VARIABLE}={str(target).split('.')[0]} in the environment"
        )
    for key, value in node.items():
        problems += untrusted(value, f"{where}.{key}" if where else str(key))
    return problems


def unknown(key: str, where: str, candidates: Iterable[str]) -> str:
    """The message for a key nobody reads, with the one that was probably meant."""
    candidates = [c for c in candidates if c != "_target_"]
    close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
    path = f"{where}.{key}" if where else key
    hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(candidates) or 'none'}"
    return f"unknown key {path}; {hint}"


def _check_part(group: str, node: Any) -> list[str]:
    if not isinstance(node, dict):
        return [f"{group}={node!r} is not an option; expected the name of a file in conf/{group}/"]
    if problems := untrusted(node, group):
        return problems
    target = node.get("_target_")
    if target is None:
        return [f"{group} has no _target_; choose an option of the group, for instance {group}=none"]
    try:
        keys = keys_of(target)
    except LookupError as error:
        return [f"{group}._target_: {error}"]
    problems = [unknown(key, group, keys) for key in node if key not in keys and key != "_target_"]
    problems += [f"{group}.{k.name} is missing; expected {k.annotation}" for k in keys.values() if _absent(k, node)]
    problems += [
        f"{group}.{name}={node[name]!r} is not {keys[name].annotation}"
        for name in node
        if name in keys and not fits(node[name], keys[name].annotation)
    ]
    return problems


def _absent(key: Key, node: dict[str, Any]) -> bool:
    return key.required and key.name not in node


def _check_section(path: str, node: Any, section: type[Any]) -> list[str]:
    if not isinstance(node, dict):
        return [f"{path}={node!r} is not a section; expected the keys {', '.join(_fields(section))}"]
    fields = _fields(section)
    problems = untrusted(node, path)
    problems += [unknown(key, path, fields) for key in node if key not in fields]
    hints = get_type_hints(section)
    for name, annotation in fields.items():
        if name not in node:
            problems.append(f"{path}.{name} is missing; expected {annotation}")
        elif dataclasses.is_dataclass(hints[name]):
            problems += _check_section(f"{path}.{name}", node[name], hints[name])
        elif not fits(node[name], annotation.replace("PlanMode", "Literal['frozen', 'full', 'lora']")):
            problems.append(f"{path}.{name}={node[name]!r} is not {annotation}")
    return problems


def _fields(section: type[Any]) -> dict[str, str]:
    return {field.name: str(field.type) for field in dataclasses.fields(section)}


def _ranges(run: dict[str, Any]) -> Iterable[str]:
    """Rules that no type expresses."""
    train, optim = run["train"], run["optim"]
    for name in ("steps", "batch_size", "accumulation", "log_every"):
        if train[name] < 1:
            yield f"train.{name}={train[name]}, expected at least 1"
    for name in ("threads", "workers"):
        if train[name] < 0:
            yield f"train.{name}={train[name]}, expected 0 or more"
    if not 0 <= optim["warmup_ratio"] < 1:
        yield f"optim.warmup_ratio={optim['warmup_ratio']}, expected a share in [0, 1)"
    if optim["min_lr"] > optim["lr"]:
        yield f"optim.min_lr={optim['min_lr']} exceeds optim.lr={optim['lr']}; set optim.min_lr below it"
    if len(optim["betas"]) != 2 or not all(0 <= beta < 1 for beta in optim["betas"]):
        yield f"optim.betas={optim['betas']}, expected two numbers in [0, 1)"
    for section, name in (("checkpoint", "every"), ("eval", "every"), ("eval", "examples"), ("eval", "gallery")):
        if run[section][name] < 0:
            yield f"{section}.{name}={run[section][name]}, expected 0 or more"
    if run["checkpoint"]["keep"] < 1:
        yield f"checkpoint.keep={run['checkpoint']['keep']}, expected at least 1"
    if run["eval"]["batch_size"] < 1:
        yield f"eval.batch_size={run['eval']['batch_size']}, expected at least 1"
    lora = [c for c, mode in train["plan"].items() if mode == "lora"]
    if lora and run["adapter"]["_target_"] == "beni.adapter.none.NoAdapter":
        yield f"train.plan.{lora[0]}=lora needs an adapter; set adapter=lora"
    if not run["study"]["name"] or "/" in run["study"]["name"]:
        yield f"study.name={run['study']['name']!r}, expected a folder name without '/'"
