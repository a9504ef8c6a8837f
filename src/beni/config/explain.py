"""Hydra's and OmegaConf's own errors, said again with the value, the expectation and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from beni.errors import ConfigError


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turns composition errors inside the block into ``ConfigError``."""
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_unknown_override(str(error), overrides)) from error


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    close = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
    hint = f"\n  fix: did you mean {group}={close[0]}?" if close else ""
    if not options:
        return str(error).splitlines()[0]
    return f"{group}={option} is not an option; expected one of: {', '.join(options)}{hint}"


def _unknown_override(message: str, overrides: Sequence[str]) -> str:
    """``Could not override 'resampler.depthh'`` -> the key that was probably meant."""
    first = message.splitlines()[0]
    found = re.search(r"Could not override '([^']+)'", first)
    if not found:
        return "\n".join(message.splitlines()[:4])
    path = found.group(1)
    parent, _, key = path.rpartition(".")
    siblings = _keys_below(parent, overrides)
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)
    hint = f"\n  fix: did you mean {parent + '.' if parent else ''}{close[0]}?" if close else ""
    where = f"{parent} has: {', '.join(siblings)}" if siblings else f"there is no {parent or 'such section'}"
    return f"unknown key {path}; {where}{hint}"


def _keys_below(parent: str, overrides: Sequence[str]) -> list[str]:
    """Keys of ``parent`` in the run composed from the group choices among ``overrides`` alone."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from beni.paths import conf_dir

    choices = [o for o in overrides if re.fullmatch(r"[a-z_/]+=[\w.-]+", o)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            run = compose("train", overrides=choices)
        except HydraException:
            run = compose("train")
    node = OmegaConf.select(run, parent) if parent else run
    return [str(key) for key in node if key != "_target_"] if OmegaConf.is_dict(node) else []
