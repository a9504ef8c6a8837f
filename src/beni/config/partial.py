"""Some sections of a run, composed by themselves: what a command lets its user set beside a run that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beni.config.compose import compose
from beni.errors import ConfigError


def sections_of(overrides: Sequence[str], allowed: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Overrides -> the sections that they name, complete and checked; ``{}`` without overrides.

    Args:
        allowed: sections that may be named, for instance ``("template",)``.
        config_dir: a further folder with a user's own options.

    Raises:
        ConfigError: when another section is named, or what they say cannot be.
    """
    named = [override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides]
    if strange := [override for override, name in zip(overrides, named, strict=True) if name not in allowed]:
        raise ConfigError(
            f"{strange[0]} cannot be set here, expected {' or '.join(f'{name}=...' for name in allowed)}\n"
            "  fix: leave it out; all else is as the run was trained"
        )
    if not overrides:
        return {}
    run = compose(overrides, config_dir)
    return {name: run[name] for name in dict.fromkeys(named)}
