"""From overrides to a frozen run: composition with Hydra, resolution, and the choices that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from beni.config.check import check
from beni.config.schema import PART_GROUPS
from beni.errors import ConfigError
from beni.paths import conf_dir


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict[str, Any]:
    """Overrides as on the command line -> a checked, resolved run as plain dicts.

    Args:
        overrides: for instance ``["llm=tiny_llama", "train.steps=10"]``.
        config_dir: a further folder with a user's own options, like ``--config-dir``.

    Raises:
        ConfigError: see ``beni.config.check``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from beni.config.explain import explained

    extra = [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []
    with explained(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra_compose("train", overrides=[*overrides, *extra], return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
    return freeze(composed, choices)


def freeze(composed: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config and its choices -> the run: resolved, checked, with ``choices`` written into it.

    Raises:
        ConfigError: see ``beni.config.check``.
    """
    from beni.config.explain import explained

    with explained():
        sections = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        plain = OmegaConf.to_container(sections, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    run = {str(key): value for key, value in plain.items()}
    run["choices"] = {g: str(o) for g, o in choices.items() if not g.startswith("hydra/") and o is not None}
    check(run)
    for group in PART_GROUPS:
        if group not in run["choices"]:  # of a list Hydra names none, and merges them into one part
            raise ConfigError(
                f"{group} takes one option, and was given a list\n"
                f"  fix: set {group} to one of them, or try each: python -m beni.train -m {group}=A,B"
            )
    run["train"]["plan"] = resolve_plan(run)
    check(run)  # once more: what ``auto`` stood for may not fit the other settings
    return run


def resolve_plan(run: Mapping[str, Any]) -> dict[str, str]:
    """The plan with ``auto`` decided: frozen where the component has pretrained weights by name, else full."""
    plan = dict(run["train"]["plan"])
    for component, mode in plan.items():
        if mode == "auto":
            node = run[component]
            has_pretrained = node.get("name") is not None or (
                "name" not in node and node.get("weights") == "pretrained"
            )
            plan[component] = "frozen" if has_pretrained else "full"
    return plan
