"""``_target_`` -> object, the only place where Hydra's ``instantiate`` is called."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from beni.config.check import untrusted
from beni.config.signature import handed_names
from beni.errors import BeniError, ConfigError


def build_stage(node: dict[str, Any], **known: Any) -> Any:
    """A part that takes of ``known`` (``tokens``, ``dim_out`` ...) what its constructor names before ``*``.

    Raises:
        ConfigError: when it is not trusted or cannot be found, or names something that is not known at its place in the
            model.
    """
    if problems := untrusted(node):  # before its signature is read, which may not be there
        raise ConfigError("\n".join(problems))
    wanted = handed_names(node["_target_"])
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"{node['_target_']} asks for {', '.join(unknown)} before *; expected some of {', '.join(known)}\n"
            "  fix: move the other arguments behind *, where they are keys of the YAML"
        )
    return build(node, *(known[name] for name in wanted))


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
        raise _refused(error) from None


def _refused(error: InstantiationException) -> Exception:
    """What a constructor raised: a value that it does not take is the user's to mend, all else keeps its traceback."""
    cause = error.__cause__
    while isinstance(cause, InstantiationException):
        cause = cause.__cause__
    if not isinstance(cause, ValueError):
        return cause if isinstance(cause, Exception) else error
    frame = traceback.extract_tb(cause.__traceback__)[-1]
    named = re.search(r"target '([^']+)'", str(error))
    part = named[1] if named else "a part"
    return ConfigError(
        f"{part} does not take its values: {cause} ({Path(frame.filename).name}, line {frame.lineno})\n"
        "  fix: change the value named above"
    )
