"""A list of selectors, ``selector=[prompt_topk,tome]``, as one option: a chain of them.

Hydra lets a group have several options and merges their values into one mapping. Here each becomes a stage of a
``Chain``, under its own name, so that a value is set as ``selector.stages.tome.keep=64``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from beni.config.given import chosen_by_presets, given_by_overrides, listed_by_overrides
from beni.config.option_file import read_option_file
from beni.config.suggest import closest
from beni.errors import ConfigError

GROUP = "selector"
CHAIN = "beni.selector.chain.Chain"


def chained(hydra: DictConfig) -> list[str]:
    """The selectors that a list names, in order; none where one option is chosen."""
    listed = listed_by_overrides(hydra).get(GROUP, chosen_by_presets(hydra).get(GROUP))
    one_chosen = isinstance(hydra.runtime.choices.get(GROUP), str)
    return [str(name) for name in listed] if isinstance(listed, list) and not one_chosen else []


def with_chain(composed: DictConfig, hydra: DictConfig, names: list[str]) -> DictConfig:
    """The composed config, with a chain of these selectors in the place of their merged values.

    Raises:
        ConfigError: when a value of the command line is of one of the stages, and does not say of which.
    """
    said = given_by_overrides(hydra).get(GROUP, {})
    if unclear := [key for key in said if key != "stages"]:
        raise ConfigError(
            f"selector.{unclear[0]} with several selectors: of which of {', '.join(_numbered(names))}?\n"
            f"  fix: set selector.stages.{names[0]}.{unclear[0]}={said[unclear[0]]}"
        )
    stages: dict[str, Any] = {}
    for key, name in _numbered(names).items():
        stages[key] = {"_partial_": True, **_option(hydra, name)}
    given = composed.get(GROUP, {}).get("stages", {})
    node = OmegaConf.merge({"_target_": CHAIN, "stages": stages}, {"stages": given})
    changed = composed.copy()
    OmegaConf.set_struct(changed, False)
    OmegaConf.set_readonly(changed, False)
    changed[GROUP] = node
    return changed


def settle_stages(run: Mapping[str, Any]) -> None:
    """Marks the stages of a chain as built by it, also where a file of options has left that out.

    Raises:
        ConfigError: when a value was set of a stage that the chain does not have.
    """
    node = run.get(GROUP)
    stages = node.get("stages") if isinstance(node, dict) and node.get("_target_") == CHAIN else None
    if not isinstance(stages, dict):
        return  # which is the business of the check of types
    for name, stage in stages.items():
        if not isinstance(stage, dict) or "_target_" not in stage:
            known = [other for other in stages if other != name]
            raise ConfigError(
                f"selector.stages.{name} is no stage of this chain; its stages are {', '.join(known)}\n"
                f"  fix: did you mean selector.stages.{closest(name, known, cutoff=0) or name}?"
            )
        stage.setdefault("_partial_", True)


def _numbered(names: list[str]) -> dict[str, str]:
    """Name of a stage -> its option: ``tome``, ``tome_2`` where one is listed twice."""
    stages: dict[str, str] = {}
    for name in names:
        times = sum(option == name for option in stages.values())
        stages[name if times == 0 else f"{name}_{times + 1}"] = name
    return stages


def _option(hydra: DictConfig, name: str) -> dict[str, Any]:
    """What the file of a selector holds."""
    for source in hydra.runtime.config_sources:
        path = Path(source.path, GROUP, f"{name}.yaml")
        if source["schema"] == "file" and path.is_file():
            return read_option_file(path)
    raise ConfigError(f"selector={name} is no option\n  fix: name one of conf/{GROUP}/")
