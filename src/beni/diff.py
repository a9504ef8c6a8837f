"""``python -m beni.diff RUN_A RUN_B``: in what two runs differ, and whether that is more than what was set.

Settings that can change a result, those that cannot, and what the runs have noted of their code, versions, data,
batches and initial weights. Runs are only read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beni.console import printing_command
from beni.errors import BeniError, ResumeError

if TYPE_CHECKING:
    from beni.runs.read import Run

ABSENT = "(absent)"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.diff", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("run", type=Path, help="folder of a run")
    command.add_argument("other", type=Path, help="folder of another one")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where the runs differ in their settings alone, or in nothing; 1 where they differ in more; 2 for a
    user error.
    """
    arguments = parser().parse_args(argv)
    from beni.analysis.pairing import compare_runs
    from beni.config.command import report
    from beni.runs.read import collect_run

    try:
        run, other = (collect_run(_run(folder)) for folder in (arguments.run, arguments.other))
        for one in (run, other):
            _require_config(one)
        settings, others = setting_lines(run, other)
    except BeniError as error:
        report(error)
        return 2
    for one in (run, other):
        _print(f"damaged: {one.folder}", one.damage)
    _print("settings", settings)
    _print("settings that cannot change a result", others)
    found: dict[str, list[str]] = {"differs": [], "missing": [], "note": []}
    for kind, sentence in compare_runs(run, other):
        found[kind].append(sentence)
    _print("besides", found["differs"])
    _print("not proven", found["missing"])
    _print("notes", found["note"])
    print(_verdict(settings, found))
    return int(bool(found["differs"]))


def setting_lines(run: Run, other: Run) -> tuple[list[str], list[str]]:
    """``key: value -> value`` of the settings that can change a result, and of those that cannot."""
    from beni.runs.identity import relevant
    from beni.runs.read import flatten

    ours, theirs = (flatten(dict(one.config)) for one in (run, other))
    counts = {key for one in (run, other) for key in flatten(relevant(dict(one.config)))}
    lines = dict(_differences(ours, theirs))
    return [line for key, line in lines.items() if key in counts], [
        line for key, line in lines.items() if key not in counts
    ]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from beni.runs.read import plain

    for key in sorted(ours.keys() | theirs.keys()):
        pair = [plain(one[key]) if key in one else ABSENT for one in (ours, theirs)]
        if pair[0] != pair[1]:
            yield key, f"{key}: {pair[0]} -> {pair[1]}"


def _verdict(settings: Sequence[str], found: Mapping[str, Sequence[str]]) -> str:
    if found["differs"]:
        return "confounded: they differ in more than in their settings"
    proof = "" if not found["missing"] else ", as far as they tell"
    return f"they differ in {'their settings alone' if settings else 'no setting'}{proof}"


def _run(folder: Path) -> Path:
    """Raises ResumeError where there is no run to read."""
    from beni.runs.frozen import is_frozen

    if not is_frozen(folder):
        raise ResumeError(f"{folder} is no run folder, which has a config.yaml\n  fix: name runs/<study>/<run>")
    return folder


def _require_config(run: Run) -> None:
    """Raises ResumeError where the settings of a run cannot be read: nothing could be said of it."""
    from beni.runs.files import CONFIG

    if not run.config:
        raise ResumeError(f"{run.folder}: {'; '.join(run.problems)}\n  fix: restore {CONFIG} from a copy")


def _print(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")


if __name__ == "__main__":
    raise SystemExit(main())
