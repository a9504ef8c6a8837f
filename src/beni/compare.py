"""``python -m beni.compare runs/<study>``: which arm is better, by how much, at what cost, and is the pair fair?

Prints the table and writes compare.md, compare.csv and compare.json into the study folder. Runs are only read, so it
may be called while the study is still going on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from beni.console import unfailing_output
from beni.errors import BeniError

WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.compare", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("study", type=Path, help="folder of the study, for instance runs/resampler_zoo")
    command.add_argument("--baseline", metavar="LABEL", help="arm to compare with (default: the first one started)")
    command.add_argument("--metric", default="eval/accuracy", help="a key of metrics.jsonl (default: %(default)s)")
    return command


@unfailing_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the study, the baseline or the metric does not exist."""
    arguments = parser().parse_args(argv)
    # Only now: --help stays instant.
    from rich.console import Console
    from rich.text import Text

    from beni.analysis.comparison import compare_study
    from beni.analysis.tables import write_comparison
    from beni.analysis.terminal_tables import compare_table
    from beni.config.command import report

    try:
        comparison = compare_study(arguments.study, baseline=arguments.baseline, metric=arguments.metric)
        written = write_comparison(comparison)
    except BeniError as error:
        report(error)
        return 2
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE)
    console.print(compare_table(comparison))
    console.print(Text("written: " + " ".join(map(str, written))), soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
