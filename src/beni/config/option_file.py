"""A YAML file of options -> plain values. What is wrong with a file is said with its name, the line and the fix.

YAML 1.1 reads ``1:2`` as 62 and ``010`` as 8; here both are texts, as on a command line. Tags are refused, since the
files hold plain values. Sizes are limited, so that no file (deep nesting, aliases of aliases) takes the machine down.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from beni.components import PART_GROUPS
from beni.config.schema import SECTIONS
from beni.errors import ConfigError

DEEPEST = 40
"""Levels of nesting that a file may have; no option of beni has more than six."""
MOST = 20_000
"""Values that a file may have, those that aliases repeat included."""

PRESET_GROUPS = ("recipe", "launcher", "local", "experiment")
"""Groups whose files set other groups: each begins with ``# @package _global_``."""

CHOSEN = (*PART_GROUPS, "template", "schedule", "optim", "fsdp", "launcher", "recipe", "experiment")
"""Groups of which a run has an option."""

PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))
STRING = "tag:yaml.org,2002:str"

Loader: Any = type("Loader", (get_yaml_loader(),), {})
"""OmegaConf's reading of YAML (``1e-3`` is a number, a date is a text), without numbers to the base of 60 or 8."""
NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, NUMBERS.get(tag, found)) for tag, found in resolvers]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}

HINTS = (
    ("duplicate key", "keep one of the two"),
    ("'\\t'", "indent with blanks, not with tabs"),
    ("undefined alias", "put a text that begins with * in quotes"),
    ("another document", "keep one document: leave out --- and what follows"),
    ("mapping values", "put the text in quotes, or check the indentation of this line and the one before"),
    ("expected ',' or", "close the bracket, or put the text that holds it in quotes"),
    ("block end", "indent this line like those of its section"),
)
"""What YAML's own messages say -> what is to be done."""


def read_option_file(path: Path, whole: bool = False) -> dict[str, Any]:
    """The values of a file, its ``defaults`` included; those of an empty one are ``{}``.

    Args:
        whole: the file sets sections of the run, not values of one of them.

    Raises:
        ConfigError: when it cannot be read, is no YAML, or holds what no option can hold.
    """
    text = _decoded(path)
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}
            _judge(path, node)
            if whole:
                _judge_sections(path, node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _fault(path, line, f"a character that no text has (#x{error.character:04x})", "remove it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
        fix = next((fix for words, fix in HINTS if words in problem), "put texts with : # [ { & * ! | > % @ in quotes")
        opened = error.context_mark
        since = f" ({error.context}, which began at line {opened.line + 1})" if opened and error.context else ""
        raise _fault(path, mark.line + 1 if mark else 1, problem + since, fix) from error
    except RecursionError as error:
        raise _fault(path, 1, "nested too deeply", f"nest no more than {DEEPEST} levels") from error


def package_of(path: Path, group: str) -> str | None:
    """What ``# @package`` in the first line says; None without one, ``_global_`` for a preset without values.

    Raises:
        ConfigError: when it is not as Hydra reads it, or a preset lacks it.
    """
    lines = _decoded(path).splitlines()
    found = [(number, line) for number, line in enumerate(lines, 1) if re.match(r"\s*#\s*@\s*package", line)]
    first = next((number for number, line in enumerate(lines, 1) if line.strip()), 1)
    if found and found[0][0] != first:
        raise _fault(path, found[0][0], "# @package is read in the first line only", "move it to the first line")
    words = found[0][1].strip().lstrip("#").split() if found else []
    if found and (len(words) != 2 or words[0] != "@package"):
        raise _fault(path, first, f"{found[0][1].strip()} is not '# @package NAME'", "write # @package _global_")
    package = words[1] if found else None
    if package is None and group in PRESET_GROUPS and all(line.strip()[:1] in ("", "#") for line in lines):
        return "_global_"
    if group in PRESET_GROUPS and (package is None or (package.startswith("_") and package != "_global_")):
        told = "has no '# @package _global_'" if package is None else f"has the package {package}"
        raise _fault(
            path,
            first,
            f"it {told}, so its values would belong to a section called {package or group}",
            "write # @package _global_ as the first line of the file",
        )
    return package


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _fault(path, line, "the file is not UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise _fault(path, 1, f"it cannot be read ({error.strerror})", "make it readable, or choose another") from error


def _fault(path: Path, line: int, what: str, fix: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}\n  fix: {fix}")


def _judge(path: Path, root: yaml.Node) -> None:
    """Refuses what YAML allows and an option cannot be: other types, keys that are no words, too much of it."""
    if not isinstance(root, yaml.MappingNode):
        what = "a list" if isinstance(root, yaml.SequenceNode) else f"the one value {root.value!r}"
        raise _fault(path, root.start_mark.line + 1, f"it holds {what}, not keys and values", "write KEY: VALUE lines")
    waiting: list[tuple[yaml.Node, int]] = [(root, 0)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        line = node.start_mark.line + 1
        if seen > MOST or depth > DEEPEST:
            what = f"more than {MOST} values" if seen > MOST else f"more than {DEEPEST} levels"
            raise _fault(path, line, f"{what}, or an alias that holds itself", "make it smaller, without aliases")
        if node.tag not in PLAIN:
            raise _fault(path, line, f"the tag {node.tag}; options are plain values", "leave the tag out")
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                _judge_key(path, key, value, top=node is root)
                waiting.append((value, depth + 1))
    for key, value in root.value:
        if key.value == "defaults":
            _judge_defaults(path, value)


def _judge_sections(path: Path, root: yaml.Node) -> None:
    """Refuses a value where the run has a section, such as ``vision: clip``."""
    for key, node in root.value:
        known = key.value in SECTIONS or key.value in CHOSEN
        scalar = node.value if isinstance(node, yaml.ScalarNode) else None
        if not known or isinstance(node, yaml.MappingNode) or (scalar and scalar.startswith("${")):
            continue
        if scalar and key.value in CHOSEN:
            what, fix = (
                f"{key.value}: {scalar} is an option",
                f"write it in defaults: - override /{key.value}: {scalar}",
            )
        else:
            what = f"{key.value} is a section, and has {'no keys' if not node.value else 'a value'} here"
            fix = f"write its keys below it, indented, or leave {key.value} out"
        raise _fault(path, key.start_mark.line + 1, what, fix)


def _judge_key(path: Path, key: yaml.Node, value: yaml.Node, top: bool) -> None:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode) or key.tag not in (STRING, "tag:yaml.org,2002:merge"):
        shown = repr(key.value) if isinstance(key, yaml.ScalarNode) and key.value else "?"
        raise _fault(path, line, f"the key {shown} is not text", "write a word as the key, in quotes if it is a number")
    if top and "." in key.value:
        nested = value.value if isinstance(value, yaml.ScalarNode) else "..."
        for word in reversed(key.value.split(".")[1:]):
            nested = f"{{{word}: {nested}}}"
        what = f"the key {key.value} has a dot, which only the command line takes apart"
        raise _fault(path, line, what, f"write {key.value.split('.')[0]}: {nested}")


def _judge_defaults(path: Path, node: yaml.Node) -> None:
    fix = "write defaults: as a list, each entry a file or '- override /GROUP: OPTION'"
    if not isinstance(node, yaml.SequenceNode):
        raise _fault(path, node.start_mark.line + 1, "defaults is not a list", fix)
    for item in node.value:
        line = item.start_mark.line + 1
        if isinstance(item, yaml.ScalarNode) and item.tag == STRING and item.value.strip():
            continue
        if not isinstance(item, yaml.MappingNode) or len(item.value) != 1:
            raise _fault(path, line, "an entry of defaults is neither a name nor one 'GROUP: OPTION'", fix)
        option = item.value[0][1]
        options = option.value if isinstance(option, yaml.SequenceNode) else [option]
        for one in options:
            named = isinstance(one, yaml.ScalarNode) and one.tag == STRING
            if not named and not (one is option and one.tag.endswith(":null")):
                shown = one.value if isinstance(one, yaml.ScalarNode) else "..."
                raise _fault(path, line, f"the option {shown} in defaults is not the name of a file", fix)
