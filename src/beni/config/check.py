"""Everything about a composed run that can be judged without importing torch: keys, types, targets, ranges.

Hydra accepts any key behind ``+`` and knows nothing of a part's signature, so the composed run is checked as a whole.
Each problem names the key, the value, what was expected and, for a misspelling, the key that was probably meant.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from beni.components import PART_GROUPS, Backbone, Component
from beni.config.architecture import architecture_rules
from beni.config.schema import RULES, SECTIONS, VARIANTS
from beni.config.sections.train import PlanMode
from beni.config.signature import Key, fields_of, keys_of
from beni.config.suggest import unknown_key
from beni.config.types import example, expectation, fits, mapping, mended, owner_of_fields
from beni.errors import ConfigError

TRUST_VARIABLE = "BENI_TRUSTED"
"""Environment variable with further trusted prefixes of ``_target_``, separated by commas. Never read from a config."""

GENERATED = ("choices", "dropped")
"""Top-level keys that beni itself writes into the frozen run."""

ALIASES = {
    name: f"Literal{list(get_args(alias))}"
    for name, alias in (("PlanMode", PlanMode), ("Component", Component), ("Backbone", Backbone))
}
"""Names in the annotations of sections, spelt out, since annotations are compared as text."""


def check(run: dict[str, Any]) -> None:
    """A run as plain dicts, resolved and completed (config/compose.py): each value, and the rules between them.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    check_values(run)
    if problems := [problem for rules in (*RULES, architecture_rules) for problem in rules(run)]:
        raise ConfigError("\n".join(problems))


def check_values(run: dict[str, Any]) -> None:
    """Each value of a run by itself: its key, its type, its range, its target.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    known = (*PART_GROUPS, *SECTIONS, *GENERATED)
    tree = {key: value for key, value in run.items() if key in known}
    problems = [unknown_key(key, tree, run.get("choices", {})) for key in run if key not in known]
    problems += [
        f"{key} is missing from the run\n  fix: leave out ~{key}"
        for key in known
        if run.get(key, {}) == {} and key not in GENERATED
    ]
    for group in PART_GROUPS:
        if run.get(group, {}) != {}:
            problems += _check_part(group, run[group], run.get("choices", {}))
    for name, section in SECTIONS.items():
        if run.get(name, {}) == {}:
            continue
        if name in VARIANTS:
            problems += _check_variant(name, run[name], run.get("choices", {}).get(name))
        else:
            problems += _check_section(name, run[name], section)
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
            problems.append(f"{where}._target_: {error}\n  fix: {_to_find(str(target))}")
    for key, value in node.items():
        problems += untrusted(value, f"{where}.{key}" if where else str(key))
    return problems


def _to_find(target: str) -> str:
    """What to do about a target that is trusted and is not there."""
    package = target.split(".")[0]
    if target.startswith("beni."):
        return "choose an option of the group"
    if importlib.util.find_spec(package) is None:
        return f"set PYTHONPATH to the folder that holds {package}; it is looked for there and in {Path.cwd()}"
    return f"correct _target_, or the file of {package} that it names"


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
    tree = _nested(path, {name: node.get(name) for name in keys})
    # parts within a part (vision.encoders) are partial, and built by it
    given = [key for key in node if key != "_target_" and not (key == "_partial_" and "." in path)]
    problems = [unknown_key(f"{path}.{key}", tree, choices) for key in given if key not in keys]
    problems += [_missing(f"{path}.{k.name}", k.annotation) for k in keys.values() if _absent(k, node)]
    for name in given:
        if name in keys:
            problems += _check_value(f"{path}.{name}", node[name], keys[name].annotation)
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
    problem, fixed = f"{path}={_shown(value)}, expected {expectation(annotation)}", mended(value, annotation)
    if fixed is not None:
        return f"{problem}\n  fix: set {path}={fixed}" if fixed.isalnum() else f"{problem}\n  fix: set '{path}={fixed}'"
    if (entries := mapping(annotation)) and entries[0]:
        return f"{problem}\n  fix: set {path}.{entries[0][-1]}={example(entries[1])}"
    return f"{problem}\n  fix: set {path}={example(annotation, value)}"


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
    inner = _nested(path, dict.fromkeys(fields))
    problems += [unknown_key(f"{path}.{key}", inner, {}) for key in node if key not in fields]
    hints = get_type_hints(section)
    for name, annotation in fields.items():
        if name not in node:
            problems.append(_missing(f"{path}.{name}", annotation))
        elif dataclasses.is_dataclass(hints[name]):
            problems += _check_section(f"{path}.{name}", node[name], hints[name])
        else:
            problems += _check_value(f"{path}.{name}", node[name], annotation)
    return problems


def _check_value(path: str, value: Any, annotation: str) -> list[str]:
    """A value against its annotation. In a mapping, the entry that is wrong is named and not the mapping."""
    if isinstance(value, dict) and (owner := owner_of_fields(annotation)):
        return _check_entries(path, value, {key: field.annotation for key, field in fields_of(owner).items()})
    if fits(value, annotation):
        return []
    if not isinstance(value, dict):
        return [_wrong_type(path, value, annotation)]
    if (entries := mapping(annotation)) is None:
        return [unknown_key(f"{path}.{key}", _nested(path, None), {}) for key in value] or [
            _wrong_type(path, value, annotation)
        ]
    keys, inner = entries
    known = dict.fromkeys(value if keys is None else keys, inner)
    return _check_entries(path, value, known) or [_wrong_type(path, value, annotation)]


def _check_entries(path: str, values: dict[str, Any], known: Mapping[str, str]) -> list[str]:
    """The entries of a mapping, against the annotation of each key that is known."""
    tree = _nested(path, dict.fromkeys(known))
    problems = [unknown_key(f"{path}.{key}", tree, {}) for key in values if key not in known]
    for key in values:
        if key in known:
            problems += _check_value(f"{path}.{key}", values[key], known[key])
    return problems


def _nested(path: str, tree: Any) -> dict[str, Any]:
    """``tree`` below the dotted key ``path``."""
    for name in reversed(path.split(".")):
        tree = {name: tree}
    return tree


def _check_variant(path: str, node: Any, choice: str | None) -> list[str]:
    """A section whose keys depend on one of its values, which decides before them."""
    section, (key, variants) = SECTIONS[path], VARIANTS[path]
    if not isinstance(node, dict):
        return _check_section(path, node, section)
    name, annotation = node.get(key), _fields(section)[key]
    if not fits(name, annotation):
        return [_wrong_type(f"{path}.{key}", name, annotation)]
    if choice in variants and name != choice:
        return [f"{path}.{key}={name}, but {path}={choice} has another one's values\n  fix: set {path}={name}"]
    return _check_section(path, node, variants[str(name)])


def _fields(section: type[Any]) -> dict[str, str]:
    """Field -> its annotation as text."""
    names = re.compile(rf"\b({'|'.join(ALIASES)})\b")
    return {
        field.name: names.sub(lambda found: ALIASES[found[1]], str(field.type)) for field in dataclasses.fields(section)
    }
