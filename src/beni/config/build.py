"""``_target_`` -> object, the only place where Hydra's ``instantiate`` is called."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from beni.config.check import untrusted
from beni.errors import BeniError, ConfigError


def build(node: dict[str, Any], *args: Any) -> Any:
    """The object a part's node describes; ``args`` are what its constructor takes before ``*``.

    Raises:
        ConfigError: when a ``_target_`` below ``node`` is not trusted.
        BeniError: whatever the part itself raises, unwrapped.
    """
    if problems := untrusted(node):
        raise ConfigError("\n".join(problems))
    try:
        return instantiate(node, *args, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, BeniError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise
