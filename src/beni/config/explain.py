"""Hydra's and OmegaConf's own errors, said again with the value, the expectation and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from hydra.core.default_element import GroupDefault
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from beni.config.suggest import closest, unknown_key
from beni.errors import ConfigError
from beni.paths import conf_dir


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
    except (ValueError, TypeError) as error:
        if "Config group override" not in str(error) and not _lists_of_options(error):
            raise
        raise ConfigError(_no_option(error)) from error
    except RecursionError as error:
        if (chain := _circle(error)) is None:
            raise
        raise ConfigError(
            f"the defaults lead back to where they began: {' -> '.join(chain)}\n"
            f"  fix: leave {chain[1]} out of the defaults of {chain[0]}"
        ) from error


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    # of a list of options Hydra does not say which there are
    options = sorted(error.options or {path.stem for path in (conf_dir() / group).glob("*.yaml")})
    if not group:
        return str(error).splitlines()[0]
    if not options:
        return f"{group}={option} is not an option; conf/{group}/ has none yet\n  fix: leave out {group}={option}"
    fix = (
        f"did you mean {group}={close}?" if (close := closest(option, options, 0.5)) else f"set {group} to one of these"
    )
    return f"{group}={option} is not an option; expected one of: {', '.join(options)}\n  fix: {fix}"


def _locals(error: BaseException, function: str) -> Iterator[dict[str, Any]]:
    """The local variables of each call of ``function`` in which ``error`` arose. Hydra leaves them out of its text."""
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == function:
            yield frame.f_locals


def _lists_of_options(error: BaseException) -> list[str]:
    """Lists of options, within which there is something that is no name, as overrides."""
    found = [values.get("d") for values in _locals(error, "_create_defaults_tree_impl")]
    return [f"{one.group}={one.value}" for one in found if isinstance(one, GroupDefault) and one.is_options()]


def _no_option(error: ValueError | TypeError) -> str:
    """An override that gives a group something that is no name of a file."""
    given = [str(override.input_line) for found in _locals(error, "__init__") if (override := found.get("override"))]
    override = [*given, *_lists_of_options(error), "GROUP=null"][0]
    group, _, value = override.lstrip("+~").partition("=")
    options = sorted(path.stem for path in (conf_dir() / group.partition("@")[0]).glob("*.yaml"))
    shown = f" (options: {', '.join(options)})" if options else ""
    fix = f"write {group}=none" if "none" in options else f"write {group}={options[0] if options else 'OPTION'}"
    return f"{override}: an option is the name of a file, not {value or 'nothing'}{shown}\n  fix: {fix}, or another one"


def _circle(error: RecursionError) -> list[str] | None:
    """Files whose ``defaults`` name each other, the first one again at the end; None for every other recursion."""
    names = [str(found["path"]) for found in _locals(error, "_create_defaults_tree_impl") if "path" in found]
    for start, name in enumerate(names):
        if name in names[start + 1 :]:
            return names[start : names.index(name, start + 1) + 1]
    return None


def _unreadable(error: OverrideParseException) -> str:
    key, _, value = str(error.override).partition("=")
    if value.startswith("~/"):
        return f"{error.override!r}: a value cannot begin with ~\n  fix: write {key}=$HOME{value[1:]}"
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
    if found := re.search(r"In '?([^']+?)'?: Could not override '(?:[^'@]*/)?([^'@]+)(?:@[^']*)?'", str(error)):
        group = found.group(2)
        return (
            f"{found.group(1)}: its defaults override {group}, which is no group there\n"
            f"  fix: write - override /{group}: OPTION, with a slash"
        )
    if found := re.search(r"Could not override '([^']+)'", first):
        if "Did you mean" in str(error):  # Hydra's own hint: a group written with a package
            return " ".join(str(error).splitlines()[:2])
        return unknown_key(found.group(1), tree, choices)
    if found := re.search(r"You must specify '([^']+)'", str(error)):
        group = found.group(1)
        first_option = min((path.stem for path in (conf_dir() / group).glob("*.yaml")), default="OPTION")
        return f"{group}=??? chooses no option\n  fix: set {group}={first_option}, or another one, or leave out {group}"
    if found := re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", str(error)):
        key, values = found.groups()
        return (
            f"{key}={values}: several values for one run\n"
            f"  fix: to run each, python -m beni.train -m {key}={values}; for a list, write '{key}=[{values}]'"
        )
    if found := re.search(r"^Error merging override (\S+?)=(.*)", first):
        return _no_mapping(found.group(1), found.group(2), tree)
    if found := re.search(r"Could not delete from config. '([^']+)'", first):
        return f"~{found.group(1)} removes a key that is not there\n  fix: leave out ~{found.group(1)}"
    if found := re.search(r"Multiple values for (\S+?)\. To override", first):
        group = found.group(1)
        return (
            f"{group} is given a second option\n"
            f"  fix: write {group}=OPTION without the plus, or in a file's defaults: - override /{group}: OPTION"
        )
    return "\n".join(str(error).splitlines()[:4])


def _no_mapping(key: str, value: str, tree: dict[str, Any]) -> str:
    """A list or a single value that an override gives to a mapping."""
    node: Any = tree
    for name in key.lstrip("+").split("."):
        node = node.get(name, {}) if isinstance(node, dict) else {}
    inner = sorted(str(name) for name in node) if isinstance(node, dict) else []
    keys = f" with the keys {', '.join(inner)}" if inner else ""
    return f"{key}={value}, expected a mapping{keys}\n  fix: set {key}.{inner[0] if inner else 'KEY'}=..."


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
