"""``python -m beni.compare runs/<study>``: which arm is better, by how much, at what cost, and is the pair fair?

Prints the table and writes report.html, report.md, results.csv and results.json into the study folder. Runs are only
read, so it may be called while the study is still running.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beni.console import unfailing_output
from beni.errors import BeniError, ResourceError

if TYPE_CHECKING:
    from beni.analysis.comparison import Comparison
    from beni.runs.read import Fate

WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.compare", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("study", type=Path, help="folder of the study, for instance runs/resampler_zoo")
    command.add_argument("--baseline", metavar="LABEL", help="baseline arm (default: the first one of the sweep)")
    command.add_argument(
        "--metric", help="a key of metrics.jsonl (default: eval/accuracy; eval/loss where no run has one)"
    )
    return command


@unfailing_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the study, the baseline or the metric does not exist, or the disk
    does not take the files.
    """
    arguments = parser().parse_args(argv)
    # Only now: --help stays instant.
    from rich.console import Console
    from rich.text import Text

    from beni.analysis.comparison import compare_study
    from beni.analysis.terminal_tables import compare_table
    from beni.config.command import report

    try:
        comparison = compare_study(arguments.study, baseline=arguments.baseline, metric=arguments.metric, fates=_fates)
        console = Console(markup=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
        console.print(compare_table(comparison))
        written = _written(comparison)
    except BeniError as error:
        report(error)
        return 2
    console.print(Text("written: " + " ".join(map(str, written))), soft_wrap=True)
    return 0


def _fates(folders: Sequence[Path]) -> dict[Path, Fate]:
    """What became of runs, also of those whose process can no longer say so."""
    from beni.launch.states import states_of
    from beni.runs.read import Fate

    return {state.folder: Fate(state.state, state.reason) for state in states_of(folders)}


def _written(comparison: Comparison) -> list[Path]:
    """The files of the comparison.

    Raises:
        ResourceError: when the disk does not take them.
    """
    from beni.analysis.tables import write_comparison

    try:
        return write_comparison(comparison)
    except OSError as error:
        raise ResourceError(
            f"the comparison could not be written into {comparison.folder}: {error}\n  fix: the table above "
            "is complete; to write the files, free disk space or compare a writable copy of the study"
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
