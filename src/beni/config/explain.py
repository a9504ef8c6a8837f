"""Hydra's and OmegaConf's own errors, said again with the value, the expectation and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from beni.config.suggest import closest, unknown_key
from beni.errors import ConfigError


@contextmanager
def explained() -> Iterator[None]:
    """Turns composition errors inside the block into ``ConfigError``."""
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from error
    except OverrideParseException as error:
        raise ConfigError(_unreadable(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_said_again(error)) from error
    except ValueError as error:
        if "Config group override must be a string" not in str(error):
            raise
        # Hydra does not say which group; its own traceback is all there would be otherwise
        raise ConfigError(
            "an option is the name of a file, and an override sets one to null\n  fix: write GROUP=none instead of null"
        ) from error


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return str(error).splitlines()[0]
    if not options:
        return f"{group}={option} is not an option; conf/{group}/ has none yet\n  fix: leave out {group}={option}"
    fix = (
        f"did you mean {group}={close}?" if (close := closest(option, options, 0.5)) else f"set {group} to one of these"
    )
    return f"{group}={option} is not an option; expected one of: {', '.join(options)}\n  fix: {fix}"


def _unreadable(error: OverrideParseException) -> str:
    return (
        f"{error.override!r} is not an override\n"
        "  fix: write GROUP=OPTION or KEY=VALUE, in quotes where the value has blanks, brackets or commas"
    )


def _said_again(error: Exception) -> str:
    first = str(error).splitlines()[0]
    cause = _omegaconf_cause(error)
    tree, choices = _composed(cause)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} has no value\n  fix: set {cause.full_key}=..."
    if isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}\n  fix: set {cause.full_key} to a plain value"
    if found := re.search(r"Could not override '([^']+)'", first):
        if "Did you mean" in str(error):  # Hydra's own hint: a group written with a package
            return " ".join(str(error).splitlines()[:2])
        return unknown_key(found.group(1), tree, choices)
    if found := re.search(r"Could not delete from config. '([^']+)'", first):
        return f"~{found.group(1)} removes a key that is not there\n  fix: leave out ~{found.group(1)}"
    if found := re.search(r"Multiple values for (\S+?)\. To override", first):
        group = found.group(1)
        return f"+{group}=... adds a second option of one group\n  fix: write {group}=... without the plus"
    return "\n".join(str(error).splitlines()[:4])


def _omegaconf_cause(error: BaseException) -> OmegaConfBaseException | None:
    """The OmegaConf error nearest to the start: it knows the key and the config around it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    return cause


def _composed(error: OmegaConfBaseException | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config in which ``error`` arose and its choices, as far as they had been composed."""
    node = error.parent_node if error is not None else None
    root = node._get_root() if node is not None else None
    if not isinstance(root, DictConfig):
        return {}, {}
    choices = OmegaConf.select(root, "hydra.runtime.choices") or {}
    plain = OmegaConf.to_container(root, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, {str(group): option for group, option in choices.items()}
