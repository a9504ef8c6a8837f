"""A sweep: its arms are composed, checked together and frozen together, then launched, and settled once all have ended.

The Hydra plugin (``hydra_plugins/beni``) hands over what only Hydra knows: how an arm composes, and what launches it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from beni.config.compose import composing, freeze
from beni.config.hydra_node import sweeper_problems
from beni.errors import BeniError, ConfigError, ResourceError
from beni.launch.submit import ArmFailed, check_arms, freeze_arm, run_arms, settle_arm, submitted, withdraw_arms
from beni.runs.identity import arm_command, run_folder

Arm = Sequence[str]
"""Overrides that make one run."""
Compose = Callable[[list[str]], DictConfig]


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


def sweep(
    arms: Sequence[Arm], compose: Compose, launch: Callable[[Sequence[Arm]], Sequence[JobReturn]]
) -> Sequence[JobReturn]:
    """Runs all arms; two that are the same run are run once.

    Args:
        compose: overrides of an arm to its config, with Hydra's own node.
        launch: runs arms, and gives back a result of each, in order.

    Raises:
        ConfigError: when an arm does not compose; nothing has been written then.
        ImpossibleArm: when one could never run; nothing has been written then.
        ResourceError: when the launcher takes no arm; what had been written for it is gone again.
        ArmFailed: after all arms, when some did not finish; says which and why.
    """
    composed = [compose(list(arm)) for arm in arms]
    runs = [freeze(config, config.hydra) for config in composed]
    check_arms(runs)
    made = {run_folder(run) for run in runs if not run_folder(run).exists()}
    by_folder = {freeze_arm(run, arm_command(arm)): arm for run, arm in zip(runs, arms, strict=True)}

    jobs = submitted(by_folder)
    try:
        results = launch(list(by_folder.values()))
    except BeniError:
        raise
    except Exception as error:
        if submitted(by_folder) != jobs:
            raise  # some are on their way
        withdraw_arms(made)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ResourceError(
            f"the launcher accepted no arm: {said[0]}\n"
            "  fix: start the sweep on a machine with the scheduler, or set launcher=local"
        ) from error
    failed = {}
    for folder, result in zip(by_folder, results, strict=True):
        error = result._return_value if result.status is JobStatus.FAILED else None
        if (reason := settle_arm(folder, error)) is not None:
            failed[folder] = reason
    if failed:
        study = next(iter(failed)).parent
        raise ArmFailed(
            f"{len(failed)} of {len(by_folder)} arms failed:\n"
            + "\n".join(f"  {folder.name}: {reason}" for folder, reason in failed.items())
            + ("\n  the others are finished;" if len(failed) < len(by_folder) else "\n ")
            + f" python -m beni.compare {study} shows them all"
        )
    return results


def launch_here(arms: Sequence[Arm], compose: Compose, say: Callable[[str], None]) -> list[JobReturn]:
    """Freezes every arm and runs them one after another on this machine; one that fails leaves the others alone.

    Raises:
        Preempted: when a signal has ended the sweep.
    """
    composed = [compose(list(arm)) for arm in arms]
    folders = [freeze_arm(freeze(config, config.hydra)) for config in composed]
    results = []
    for arm, config, reason in zip(arms, composed, run_arms(folders, say), strict=True):
        result = JobReturn(overrides=list(arm), cfg=config)
        result.status = JobStatus.COMPLETED if reason is None else JobStatus.FAILED
        result.return_value = None if reason is None else ArmFailed(reason)
        results.append(result)
    return results


def _words(arm: str) -> list[str]:
    """Overrides as a shell would split them."""
    try:
        return shlex.split(arm)
    except ValueError as error:
        raise ConfigError(
            f"hydra.sweeper.arms: {arm}: {error}\n  fix: write overrides as on a command line, with quotes that close"
        ) from error
