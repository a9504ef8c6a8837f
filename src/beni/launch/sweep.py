"""A sweep: its arms are composed and checked together, then launched (launch/launch.py).

The Hydra plugin (``hydra_plugins/beni``) hands over what only Hydra knows: how an arm composes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from beni.config.compose import composing, freeze
from beni.config.hydra_node import sweeper_problems
from beni.errors import ConfigError
from beni.launch import match
from beni.launch.estimate import told
from beni.launch.launch import launch
from beni.launch.submit import check_arms
from beni.runs.identity import arm_command, run_folder

Arm = Sequence[str]
"""Overrides that make one run."""
Compose = Callable[[list[str]], DictConfig]

SHOWN = 5
"""Runs that are named where several arms are the same."""


def arms_of(own: Sequence[str], product: Sequence[Arm]) -> list[list[str]]:
    """Every arm of ``hydra.sweeper.arms`` with every combination of swept values.

    Args:
        own: arms, each with overrides as on a command line.
        product: combinations; they come last in an arm, since the command line may change a value of every arm.

    Raises:
        ConfigError: when an arm is no line of overrides.
    """
    return [[*words, *values] for words in map(_words, own) for values in product]


def named_arms(overrides: Sequence[str], config_dir: str | None = None) -> list[list[str]]:
    """Overrides as on the command line -> those of every run that they, or an experiment among them, name.

    Raises:
        ConfigError: when they do not compose, or a sweep among them has no values.
    """
    with composing(config_dir) as composed_of:
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        fixed = [one.input_line or "" for one in parser.parse_overrides([*overrides]) if not one.is_sweep_override()]
        sweeper = composed_of(fixed).hydra.sweeper
        if problems := list(sweeper_problems(sweeper)):
            raise ConfigError("\n".join(problems))
        params = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
        swept = parser.parse_overrides([*params, *overrides])
        require_values(swept)
        product = [values for batch in BasicSweeper.split_arguments(swept, None) for values in batch]
    return arms_of(sweeper.get("arms") or [""], product)


def replaced(arms: Sequence[Arm]) -> list[str]:
    """A line for each value of an arm that a later one replaces, as one on the command line does in every arm."""
    lines: dict[str, None] = {}
    for arm in arms:
        earlier: dict[str, str] = {}
        for word in arm:
            key = word.partition("=")[0].lstrip("+")
            if earlier.get(key, word) != word:
                lines[f"{word} replaces {earlier[key]}: what the command line gives holds for all arms"] = None
            earlier[key] = word
    return list(lines)


def require_values(swept: Sequence[Override]) -> None:
    """Return when every swept key has a value.

    Raises:
        ConfigError: for a pattern that no option matches and an empty range: the product would have no arm.
    """
    for override in swept:
        if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
            raise ConfigError(
                f"{override.input_line} has no value to sweep over\n"
                f"  fix: name some, as in {override.get_key_element()}=A,B, or change the pattern or range"
            )


def sweep(arms: Sequence[Arm], compose: Compose, say: Callable[[str], None]) -> None:
    """Launches all arms as their ``launcher`` says; two that are the same run are launched once.

    Args:
        compose: overrides of an arm to its config, with Hydra's own node.
        say: what is told on the way.

    Raises:
        ConfigError: when an arm does not compose; nothing has been written then.
        ImpossibleArm: when one could never run; nothing has been written then.
        ResourceError: when this machine or the scheduler takes no arm; what had been written for it is gone again.
        ArmFailed: after all arms that are waited for, when some did not finish; says which and why.
    """
    for line in replaced(arms):
        say(line)
    composed = [compose(list(arm)) for arm in arms]
    runs = [freeze(config, config.hydra) for config in composed]
    found = check_arms(match.to_check(runs, arms))
    for line in match.told(runs, arms, found):
        say(line)
    launched: dict[Path, tuple[dict[str, Any], str]] = {}
    planned, again = [], []
    for config, run, arm, one in zip(composed, runs, arms, found, strict=True):
        own = [f"{key}={value}" for key, value in match.chosen(run, one).items()]
        settled = match.settled(config, config.hydra, run, one)
        if (folder := run_folder(settled)) in launched:
            again.append(folder.name)
            continue
        launched[folder] = settled, arm_command([*arm, *own])
        planned.append((one, run["launcher"]))
    if again:
        names = ", ".join(list(dict.fromkeys(again))[:SHOWN])
        say(f"{len(again)} of {len(arms)} arms are runs that earlier arms are, and count once: {names}")
    say(told(*zip(*planned, strict=True)))
    launch(list(launched.values()), say)


def _words(arm: str) -> list[str]:
    """Overrides as a shell would split them."""
    try:
        return shlex.split(arm)
    except ValueError as error:
        raise ConfigError(
            f"hydra.sweeper.arms: {arm}: {error}\n  fix: write overrides as on a command line, with quotes that close"
        ) from error
