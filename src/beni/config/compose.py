"""From overrides to a frozen run: composition with Hydra, resolution, and the choices that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from beni.components import BACKBONES, COMPONENTS, PART_GROUPS
from beni.config.architecture import settle_architectures
from beni.config.chain import chained, settle_stages, with_chain
from beni.config.check import check, check_values
from beni.config.environment import marked, secret_problems, without_values
from beni.config.foreign import drop_foreign_values
from beni.config.given import given, given_by_overrides
from beni.config.hydra_node import hydra_problems
from beni.config.schema import SECTIONS
from beni.config.sections.train import resolved_plan
from beni.config.unread import unread_problems
from beni.errors import ConfigError
from beni.paths import conf_dir

SPARSE = ("train.plan", "train.thaw", "optim.lr_scale", "optim.layer_decay")
"""Mappings that name components: empty in ``conf/``, for ``train.plan.llm=lora``."""

FOLDERS = (("paths", "runs"), ("train", "init_from"), ("compute", "feature_bank"), ("images", "cache"))
"""Values that name a folder: ``~`` in front is the home of the user."""

CHOSEN = (*PART_GROUPS, "template", "schedule", "optim", "fsdp", "launcher")
"""Groups of which a run has exactly one option."""


def _open_mappings() -> DictConfig:
    """Parts and sections that Hydra lets overrides add to; the first entry of the defaults list of conf/train.yaml.

    So a key of a mapping (``data.weights.shapes=0.9``) needs no plus, and ``check`` alone names what nobody reads.
    """
    opened = OmegaConf.create({name: {} for name in (*PART_GROUPS, *SECTIONS)})
    for node in opened.values():
        OmegaConf.set_struct(node, False)
    return opened


ConfigStore.instance().store(name="open_mappings", node=_open_mappings(), provider="beni")


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict[str, Any]:
    """Overrides as on the command line -> a checked, resolved run as plain dicts.

    Args:
        overrides: for instance ``["llm=tiny_llama", "train.steps=10"]``.
        config_dir: a further folder with a user's own options, like ``--config-dir``.

    Raises:
        ConfigError: see ``beni.config.check``.
    """
    with composing(config_dir) as composed_of:
        composed = composed_of(overrides)
    return freeze(composed, composed.hydra)


@contextmanager
def composing(config_dir: str | Path | None = None) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """Inside the block Hydra is set up as a command sets it up: (overrides) -> what they compose to, with Hydra's node.

    Args:
        config_dir: a further folder with a user's own options.

    Raises:
        ConfigError: what Hydra raises inside the block.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from beni.config.explain import explained
    from beni.config.source import option_files

    extra = [_searchpath(config_dir)] if config_dir else []
    with explained(), option_files(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda overrides: hydra_compose("train", overrides=[*overrides, *extra], return_hydra_config=True)


def _searchpath(folder: str | Path) -> str:
    quoted = str(Path(folder).resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.searchpath=['file://{quoted}']"


def freeze(composed: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    """A composed config and Hydra's own node -> the run: resolved, checked, with ``choices`` written into it.

    Raises:
        ConfigError: see ``beni.config.check``.
    """
    from beni.config.explain import explained

    with explained():
        chain = chained(hydra)
        composed = with_chain(composed, hydra, chain) if chain else composed
        sections = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        plain = OmegaConf.to_container(sections, resolve=True, throw_on_missing=True)
    plain = marked(plain, OmegaConf.to_container(sections, resolve=False))
    assert isinstance(plain, dict)
    run = {str(key): value for key, value in plain.items()}
    run["choices"] = {
        g: o for g, o in hydra.runtime.choices.items() if isinstance(o, str) and not g.startswith("hydra/")
    }
    if chain:
        run["choices"]["selector"] = "+".join(chain)
    for group in CHOSEN:
        if group not in run["choices"] and run.get(group):  # of a list Hydra names none, and merges them into one
            raise ConfigError(
                f"{group} takes one option, and was given a list\n"
                f"  fix: set {group} to one of them, or try each: python -m beni.train -m {group}=A,B"
            )
    try:
        _judge(run, hydra)
    except ConfigError as error:
        raise ConfigError(without_values(str(error), run)) from None
    return run


def _judge(run: dict[str, Any], hydra: DictConfig) -> None:
    """Checks and completes a resolved run.

    Raises:
        ConfigError: see ``beni.config.check``.
    """
    settle_stages(run)
    drop_foreign_values(run, hydra)
    check_values(run)
    if problems := list(hydra_problems(hydra)):
        raise ConfigError("\n".join(problems))
    if problems := secret_problems(run):
        raise ConfigError("\n".join(problems))
    if problems := settle_architectures(run, given(hydra), hydra):
        raise ConfigError("\n".join(problems))
    complete(run)
    check(run)
    if problems := list(unread_problems(run, given_by_overrides(hydra))):
        raise ConfigError("\n".join(problems))


def complete(run: dict[str, Any]) -> None:
    """Writes into a run what ``auto`` and the components that no mapping names stand for, so that a frozen run says
    how each of them trains.
    """
    train, optim = run["train"], run["optim"]
    train["plan"] = resolved_plan(run)
    train["thaw"] = dict.fromkeys(COMPONENTS, 0.0) | train["thaw"]
    for section, key in FOLDERS:
        if str(run[section][key]).startswith("~"):
            run[section][key] = str(Path(run[section][key]).expanduser())
    _settle_instructions(run["data"], run["template"]["name"])
    optim["lr_scale"] = dict.fromkeys(COMPONENTS, 1.0) | optim["lr_scale"]
    optim["layer_decay"] = dict.fromkeys(BACKBONES, 1.0) | optim["layer_decay"]


def _settle_instructions(node: Any, template: str) -> None:
    """Decides ``instructions: auto`` of a data node and of those in it: LLaVA's plain template has none."""
    if not isinstance(node, dict):
        return
    if node.get("instructions") == "auto":
        node["instructions"] = "drop" if template == "plain" else "keep"
    for value in node.values():
        _settle_instructions(value, template)
