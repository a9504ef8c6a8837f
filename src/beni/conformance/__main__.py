"""``python -m beni.conformance my_pkg.my_resampler:MyResampler depth=2``: does a stage of your own keep the contract?

Puts the class through the properties that every stage of beni has, and prints one line for each. The exit code is 0
when all hold, 1 when one does not, 2 when the class or its values cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beni.errors import BeniError, ConfigError

if TYPE_CHECKING:
    from beni.conformance.subject import Subject

GROUPS = ("selector", "resampler", "connector")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m beni.conformance", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    command.add_argument("target", help="module:Class, as in my_pkg.my_resampler:MyResampler")
    command.add_argument("values", nargs="*", metavar="key=value", help="the keys of its YAML, with values as in YAML")
    command.add_argument("--group", choices=GROUPS, default="resampler", help="what it is (default: %(default)s)")
    command.add_argument("--dim", type=int, default=32, help="width of the visual tokens (default: %(default)s)")
    command.add_argument("--dim-out", type=int, help="width of the llm (default: twice --dim, or --dim if that fails)")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    arguments = parser().parse_intermixed_args(argv)
    from beni.config.command import report

    try:
        node = read_node(arguments.group, arguments.target, arguments.values)
        if min(arguments.dim, arguments.dim_out or 1) < 1:
            raise ConfigError("--dim and --dim-out, expected at least 1\n  fix: leave them out")
        from beni.conformance.subject import find_subject  # imports torch: only once the values are sound
        from beni.conformance.verdict import NotMet

        try:
            subject = find_subject(arguments.group, node, arguments.dim, arguments.dim_out)
        except NotMet as reason:
            print(f"FAIL  {reason}")
            return 1
    except BeniError as error:
        report(error)
        return 2
    return show(subject)


def read_node(group: str, target: str, values: Sequence[str]) -> dict[str, Any]:
    """``module:Class`` and ``key=value`` -> what the YAML of the stage would be, checked as a run is.

    Raises:
        ConfigError: a class that is not there or not trusted; keys that it lacks, or of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from beni.config.check import check, untrusted
    from beni.config.compose import compose
    from beni.config.signature import keys_of

    module, _, name = target.partition(":")
    if not (module and name.isidentifier()):
        raise ConfigError(f"{target}, expected module:Class\n  fix: write it as my_pkg.my_resampler:MyResampler")
    node: dict[str, Any] = {"_target_": f"{module}.{name}"}
    try:
        keys_of(node["_target_"])
    except LookupError as error:
        fix = "check the name; python -m finds what lies in this folder or in PYTHONPATH"
        raise ConfigError(f"{error}\n  fix: {fix}") from None
    if problems := untrusted(node, group):
        raise ConfigError("\n".join(problems))
    for word in values:
        key, equals, value = word.removeprefix(f"{group}.").partition("=")  # errors speak of resampler.depth=2
        try:
            read = OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=True)
        except (YAMLError, OmegaConfBaseException):
            read = None
        if not (equals and key.isidentifier() and isinstance(read, dict)):
            raise ConfigError(f"{word}, expected key=value\n  fix: quote what YAML would not read as one value")
        node[key] = read["value"]
    run = compose()
    run[group], run["choices"][group] = node, name
    check(run)
    return node


def show(subject: Subject) -> int:
    """Prints a line for each property; returns the exit code."""
    import sys

    from rich.console import Console
    from rich.markup import escape

    from beni.conformance.properties import PROPERTIES
    from beni.conformance.verdict import Excused, NotMet

    # a pipe or a log has no width of its own
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    spec = subject.spec
    grid = "x".join(map(str, spec.grid)) if spec.grid else "none"
    extras = f", levels {spec.levels} wide" * bool(spec.levels) + f", {len(spec.sources)} encoders" * bool(spec.sources)
    console.print(f"{subject.node['_target_']} as {subject.group}")
    console.print(f"given {spec.n} tokens of {spec.dim}, grid {grid}{extras}; llm {subject.dim_out} wide\n")
    failures = 0
    for check in PROPERTIES:
        try:
            mark, detail = "[green]pass[/green]", check(subject)
        except Excused as reason:
            mark, detail = "[dim]none[/dim]", str(reason)
        except NotMet as reason:
            mark, detail = "[red]FAIL[/red]", str(reason)
        except Exception as error:  # whatever a stage may do must not keep the other properties from being tried
            mark, detail = "[red]FAIL[/red]", f"{type(error).__name__}: {error}"
        failures += "FAIL" in mark
        console.print(f"{mark}  {check.__name__.replace('_', ' '):<46} {escape(' '.join(detail.split()))}")
    console.print(f"\n{failures} of {len(PROPERTIES)} properties fail" if failures else "\nevery property holds")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
