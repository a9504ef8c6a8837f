"""From overrides to a frozen run: composition with Hydra, resolution, and the choices that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from beni.components import BACKBONES, COMPONENTS, PART_GROUPS
from beni.config.check import check, check_values
from beni.config.sections.train import resolved_plan
from beni.errors import ConfigError
from beni.paths import conf_dir

SPARSE = ("train.plan", "train.thaw", "optim.lr_scale", "optim.layer_decay")
"""Mappings that name components: empty in ``conf/``, and open for ``train.plan.llm=lora`` without a plus."""


def _open_mappings() -> DictConfig:
    """Empty mappings that Hydra lets overrides add to; the first entry of the defaults list of conf/train.yaml."""
    root = OmegaConf.create({})
    for path in SPARSE:
        OmegaConf.update(root, path, OmegaConf.create({}, flags={"struct": False}))
    return root


ConfigStore.instance().store(name="open_mappings", node=_open_mappings(), provider="beni")


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
    check_values(run)
    for group in PART_GROUPS:
        if group not in run["choices"]:  # of a list Hydra names none, and merges them into one part
            raise ConfigError(
                f"{group} takes one option, and was given a list\n"
                f"  fix: set {group} to one of them, or try each: python -m beni.train -m {group}=A,B"
            )
    complete(run)
    check(run)
    return run


def complete(run: dict[str, Any]) -> None:
    """Writes into a run what ``auto`` and the components that no mapping names stand for, so that a frozen run says
    how each of them trains.
    """
    train, optim = run["train"], run["optim"]
    train["plan"] = resolved_plan(run)
    train["thaw"] = dict.fromkeys(COMPONENTS, 0.0) | train["thaw"]
    optim["lr_scale"] = dict.fromkeys(COMPONENTS, 1.0) | optim["lr_scale"]
    optim["layer_decay"] = dict.fromkeys(BACKBONES, 1.0) | optim["layer_decay"]
