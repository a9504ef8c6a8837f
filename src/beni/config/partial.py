"""Some sections of a run, composed by themselves: what a command lets its user set beside a run that is there.

``data=vqa`` chooses another option, with that option's values. ``data.heldout=3`` alone changes one value of the run's
own section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from beni.config.compose import CHOSEN, composing, freeze
from beni.config.environment import FromEnvironment
from beni.errors import ConfigError

STORED = "as_trained"
"""Name under which Hydra is given the sections of a run."""


def sections_of(
    overrides: Sequence[str],
    allowed: Sequence[str],
    config_dir: str | None = None,
    trained: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Overrides -> the sections that they name, complete and checked; ``{}`` without overrides.

    Args:
        allowed: sections that may be named, for instance ``("template",)``.
        config_dir: a further folder with a user's own options.
        trained: the run, or those of its sections that are known. A section whose option no override chooses is the
            run's, with the values that overrides set; one that the run does not have is that of ``conf/train.yaml``.

    Raises:
        ConfigError: when another section is named, or what they say cannot be.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    named = [key.partition(".")[0] for key in keys]
    if strange := [override for override, name in zip(overrides, named, strict=True) if name not in allowed]:
        raise ConfigError(
            f"{strange[0]} cannot be set here, expected {' or '.join(f'{name}=...' for name in allowed)}\n"
            "  fix: leave it out; all else is as the run was trained"
        )
    if not overrides:
        return {}
    chosen = {key for key in keys if key in CHOSEN}
    kept = {name: (trained or {})[name] for name in allowed if name in (trained or {}) and name not in chosen}
    of_kept = [override for override, name in zip(overrides, named, strict=True) if name in kept]
    with composing(config_dir) as composed_of:
        composed = composed_of([override for override in overrides if override not in of_kept])
        _put(composed, _with_values(kept, of_kept), of_kept, (trained or {}).get("choices", {}))
        run = freeze(composed, composed.hydra)
    return {name: run[name] for name in dict.fromkeys(named)}


def _with_values(sections: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Sections of a frozen run with the values that overrides set, interpolations unresolved."""
    from hydra import compose as hydra_compose

    node = OmegaConf.create({name: _unresolved(section) for name, section in sections.items()})
    for section in node.values():
        OmegaConf.set_struct(section, False)  # check names an unknown key better than Hydra does
    ConfigStore.instance().store(name=STORED, node=node, provider="beni")
    return hydra_compose(STORED, overrides=list(overrides))


def _put(composed: DictConfig, sections: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> None:
    """Puts sections in the place of those that were composed, as if they had been with these overrides."""
    with open_dict(composed):
        for name in sections:
            composed[name] = sections[name]
            if name in CHOSEN:
                composed.hydra.runtime.choices[name] = choices.get(str(name), sections[name].get("name"))
        composed.hydra.overrides.task.extend(overrides)


def _unresolved(tree: Any) -> Any:
    """A frozen tree as OmegaConf reads it again: with the variables of the environment, and no other interpolation."""
    if isinstance(tree, Mapping):
        return {key: _unresolved(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unresolved(value) for value in tree]
    if isinstance(tree, FromEnvironment):
        return tree.source
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree
