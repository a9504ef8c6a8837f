"""Values that come from the environment (``data.url=https://me:${oc.env:TOKEN}@host``): used, and never written.

A frozen run keeps the text of such a value instead of what it resolves to; loading it reads the variable anew. A
password that stands in the run itself is refused, since a frozen run is a file that others read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from beni.errors import ConfigError
from beni.redact import is_secret, redacted

MARK = "${oc.env:"
LAUNCHER = "launcher"


class FromEnvironment(str):
    """A text that was resolved from the environment.

    Attributes:
        source: the text with its ``${oc.env:...}``.
    """

    source: str

    def __new__(cls, value: str, source: str) -> FromEnvironment:
        made = super().__new__(cls, value)
        made.source = source
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return FromEnvironment, (str(self), self.source)


yaml.SafeDumper.add_representer(FromEnvironment, lambda dumper, value: dumper.represent_str(value.source))


def marked(resolved: Any, raw: Any) -> Any:
    """A resolved tree in which what came from the environment says so.

    Args:
        raw: the same tree with its interpolations.
    """
    direct = _marked(resolved, raw)
    secrets = sorted({value for _, value in _texts(direct) if isinstance(value, FromEnvironment)}, key=len)
    return _passed_on(direct, raw, [value for value in reversed(secrets) if value])


def unresolved(tree: Any) -> Any:
    """A tree as it may be written and sent: what came from the environment as ``${oc.env:...}``."""
    if isinstance(tree, dict):
        return {key: unresolved(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unresolved(value) for value in tree]
    return tree.source if isinstance(tree, FromEnvironment) else tree


def resolved(tree: Any, where: str = "") -> Any:
    """A tree that ``unresolved`` has made, with the variables read anew.

    Raises:
        ConfigError: when one is not set here.
    """
    if isinstance(tree, dict):
        return {key: resolved(value, f"{where}.{key}".lstrip(".")) for key, value in tree.items()}
    if isinstance(tree, list):
        return [resolved(value, where) for value in tree]
    if not isinstance(tree, str) or MARK not in tree:
        return tree
    try:
        return FromEnvironment(str(OmegaConf.create({"value": tree}).value), tree)
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"{where}={tree}: {said}\n  fix: set the variable in the environment") from error


def without_values(message: str, tree: Any) -> str:
    """A message in which what ``tree`` has from the environment is named by its source."""
    for _, value in _texts(tree):
        if isinstance(value, FromEnvironment) and len(value) > 3:
            message = message.replace(str(value), value.source)
    return message


def secret_problems(run: dict[str, Any]) -> list[str]:
    """Passwords and tokens that stand in a run, as problems with their fixes."""
    problems = []
    for path, value in _texts({key: values for key, values in run.items() if key != LAUNCHER}):
        if not isinstance(value, FromEnvironment) and is_secret(path.rpartition(".")[2], value):
            shown = redacted(f"{path}={value}")
            problems.append(
                f"{shown} holds a password or token, which the run folder would keep\n"
                f"  fix: export it as a variable, and write it as in '{path}=${{oc.env:MY_SECRET}}'"
            )
    return problems + launcher_secret_problems(run)


def launcher_secret_problems(run: dict[str, Any]) -> list[str]:
    """Passwords and tokens of the launcher as problems with their fixes; those from the environment are some as well,
    since the script of a job would hold them.
    """
    return [
        f"{redacted(f'{path}={value}')} holds a password or token, which run folder and job script would keep\n"
        "  fix: export it where the command is given, since jobs inherit its variables, or in a file that only you can "
        "read, and write launcher.setup=['. ~/that_file']"
        for path, value in _texts(run.get(LAUNCHER, {}), LAUNCHER)
        if is_secret(path.rpartition(".")[2], value)
    ]


def _texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield path, tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _texts(value, f"{path}.{key}".lstrip("."))


def _marked(value: Any, raw: Any) -> Any:
    if isinstance(value, dict):
        return {key: _marked(one, raw.get(key) if isinstance(raw, dict) else None) for key, one in value.items()}
    if isinstance(value, list):
        given = raw if isinstance(raw, list) and len(raw) == len(value) else [None] * len(value)
        return [_marked(one, source) for one, source in zip(value, given, strict=True)]
    if isinstance(value, str) and isinstance(raw, str) and MARK in raw:
        return FromEnvironment(value, raw)
    return value


def _passed_on(value: Any, raw: Any, secrets: list[FromEnvironment]) -> Any:
    """Values that interpolate a key which came from the environment."""
    if isinstance(value, dict):
        return {k: _passed_on(one, raw.get(k) if isinstance(raw, dict) else None, secrets) for k, one in value.items()}
    if not isinstance(value, str) or isinstance(value, FromEnvironment) or not isinstance(raw, str) or "${" not in raw:
        return value
    source = value
    for secret in secrets:
        source = source.replace(str(secret), secret.source)
    return FromEnvironment(value, source) if source != value else value
