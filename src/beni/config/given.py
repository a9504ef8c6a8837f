"""What a user sets, as opposed to what the chosen options hold: presets (``experiment``, ``recipe`` ...) and overrides.

Composition merges both into one tree. Where it matters who said what (an ``architecture`` of another model, a value
that belongs to another option), the values of presets are found again under ``hydra.runtime.choices``, where
``config/source`` leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from beni.components import PART_GROUPS
from beni.config.option_file import PRESET_GROUPS, read_option_file

PRESETS = "given_by_presets"
"""Entry of ``hydra.runtime.choices`` with what presets set."""
PRESET_CHOICES = "chosen_by_presets"
"""Entry of ``hydra.runtime.choices`` with the options that presets choose."""


def note_given(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a preset, with what it sets and chooses noted for ``given``."""
    values = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    if not values:
        return content
    chosen = {}
    for entry in content.get("defaults") or []:
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            if isinstance(option, str | list):
                chosen[str(group).removeprefix("override ").strip().lstrip("/")] = option
    hydra = content.get("hydra") or {}
    runtime = hydra.get("runtime") or {}
    choices = {**(runtime.get("choices") or {}), PRESETS: values, PRESET_CHOICES: chosen}
    return {**content, "hydra": {**hydra, "runtime": {**runtime, "choices": choices}}}


def given(hydra: DictConfig) -> dict[str, Any]:
    """What presets and overrides set, as one tree, interpolations unresolved.

    Args:
        hydra: Hydra's own node of the composed config.
    """
    return merged(given_by_presets(hydra), given_by_overrides(hydra))


def given_by_presets(hydra: DictConfig) -> dict[str, Any]:
    """What presets set, as one tree."""
    return _noted(hydra, PRESETS)


def chosen_by_presets(hydra: DictConfig) -> dict[str, Any]:
    """Group -> the option that a preset chooses, or a list of them, whatever an override chose in its place."""
    return _noted(hydra, PRESET_CHOICES)


def _noted(hydra: DictConfig, entry: str) -> dict[str, Any]:
    found = hydra.runtime.choices.get(entry)
    return {} if found is None else _plain(OmegaConf.to_container(found, resolve=False))


def given_by_overrides(hydra: DictConfig) -> dict[str, Any]:
    """What overrides set, as one tree."""
    tree: dict[str, Any] = {}
    for override in _overrides(hydra):
        if override.is_delete() or override.package is not None or override.is_sweep_override():
            continue
        value = override.value()
        if isinstance(value, str) and override.key_or_group in hydra.runtime.choices:
            continue  # an option
        if isinstance(value, list) and override.key_or_group in PART_GROUPS:
            continue  # several of them
        for name in reversed(override.key_or_group.split(".")):
            value = {name: value}
        tree = merged(tree, _plain(value))
    return tree


def listed_by_overrides(hydra: DictConfig) -> dict[str, list[Any]]:
    """Group -> the options that the last override with a list of them names."""
    values = {one.key_or_group: one.value() for one in _overrides(hydra) if one.key_or_group in PART_GROUPS}
    return {group: _plain(value) for group, value in values.items() if isinstance(value, list)}


def _overrides(hydra: DictConfig) -> list[Override]:
    """The overrides as they were given, their interpolations too."""
    said = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return OverridesParser.create().parse_overrides([str(line) for line in said] if isinstance(said, list) else [])


def own(hydra: DictConfig, group: str) -> dict[str, Any]:
    """What the file of the chosen option of ``group`` holds; empty where it is none or has no file."""
    choice = hydra.runtime.choices.get(group)
    for source in hydra.runtime.config_sources:
        path = Path(source.path, group, f"{choice}.yaml")
        if source["schema"] == "file" and path.is_file():
            return read_option_file(path)
    return {}


def options_with(hydra: DictConfig, group: str, key: str) -> list[str]:
    """The options of ``group``, in all folders of the run, whose files have ``key`` for it."""
    folders = [Path(source.path, group) for source in hydra.runtime.config_sources if source["schema"] == "file"]
    files = sorted({path.stem: path for folder in folders for path in folder.glob("*.yaml")}.items())
    contents = [(name, read_option_file(path)) for name, path in files]
    return [
        name for name, content in contents if key in (content.get(group) or {} if group in PRESET_GROUPS else content)
    ]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one; where both have a value, that of ``above``."""
    tree = dict(below)
    for key, value in above.items():
        old = tree.get(key)
        tree[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return tree


def _plain(value: Any) -> Any:
    """A value of an override as plain data: quoted strings and keys are objects of Hydra's grammar."""
    if isinstance(value, Mapping):
        return {str(getattr(key, "text", key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return getattr(value, "text", value)
