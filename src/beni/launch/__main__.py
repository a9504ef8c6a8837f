"""``python -m beni.launch status|watch|logs|retry|cancel STUDY``: the runs of a study, on this machine or a cluster."""

from __future__ import annotations

import argparse
import glob
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from beni.config.command import report
from beni.console import printing_command, to_stderr
from beni.errors import PREEMPTED, BeniError, Preempted
from beni.launch import jobs, local, processes, slurm
from beni.launch.causes import by_cause
from beni.launch.names import Name, names_of, select
from beni.launch.retry import retry
from beni.launch.states import BAD, State, states_of
from beni.launch.table import render, summary
from beni.runs.read import runs_of

WATCH_S = 10.0
WIDE = 240
"""Characters of a line that is not read at a terminal."""


def parser() -> argparse.ArgumentParser:
    """What the command reads."""
    made = argparse.ArgumentParser(prog="python -m beni.launch", description="The runs of a study, and their jobs.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    told = {
        "status": "a table of all runs: arm, seed, state, step, time left, job, node, reason, folder",
        "watch": "the same, until all have ended",
        "logs": "what their jobs have printed, first where an error is that others do not explain",
        "retry": "launch again what failed, was lost, or nobody goes on with",
        "cancel": "end what runs or waits; retry goes on with it",
    }
    for name, text in told.items():
        one = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.add_argument("study", type=Path, help="folder of a study, or of one run")
        if name == "retry":
            one.add_argument("overrides", nargs="*", help="values of the launcher: launcher.mem_gb=128")
        if name in ("logs", "retry", "cancel"):
            one.add_argument("--run", default="", help="only runs of an arm, a seed (s0), or a folder: 'perceiver s0'")
        if name == "logs":
            one.add_argument("--lines", type=int, default=40, help="last lines of each file (%(default)s)")
    return made


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 for status and watch where a run has not come to its end; 2 for a user error."""
    arguments = _read(argv)
    try:
        names = select(names_of(arguments.study), getattr(arguments, "run", ""))
        return COMMANDS[arguments.command](names, arguments)
    except BeniError as error:
        report(error)
        return 2
    except Preempted as error:
        report(error)
        return PREEMPTED
    except KeyboardInterrupt:
        return 130


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; values of the launcher may stand before and after options."""
    reads = parser()
    arguments, rest = reads.parse_known_args(argv)
    if rest and (arguments.command != "retry" or any(word.startswith("-") for word in rest)):
        reads.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def status(names: list[Name], arguments: argparse.Namespace) -> int:
    """Prints the table."""
    states = _states(names)
    _show(names, states, arguments.study)
    return int(any(state.state in BAD or state.given_up for state in states))


def _states(names: Sequence[Name]) -> list[State]:
    """The state of each run, with the damage as the reason of one that says nothing else."""
    states = states_of([name.folder for name in names])
    return [
        replace(state, reason=state.reason or name.damage) if name.damage else state
        for name, state in zip(names, states, strict=True)
    ]


def _show(names: Sequence[Name], states: Sequence[State], study: Path) -> None:
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    table, reasons = render(names, states, console.width)
    console.print(table)
    idle = sum(state.given_up for state in states)
    told = f"{idle} of them wait, and nobody will start them: python -m beni.launch retry {study} does"
    for line in (*reasons, *([told] if idle else []), summary(states)):
        print(line)


def watch(names: list[Name], arguments: argparse.Namespace) -> int:
    """Prints the table again whenever a state has changed, until all runs have ended, or wait in vain."""
    shown: list[tuple[Path, str, str]] = []
    while True:
        if {name.folder for name in names} != set(runs_of(arguments.study)):
            names = names_of(arguments.study)
        states = _states(names)
        now = [(state.folder, state.state, state.job) for state in states]
        if now != shown:
            _show(names, states, arguments.study)
            shown = now
        if all(state.given_up if state.stranded else state.over for state in states):
            return int(any(state.state in BAD or state.given_up for state in states))
        time.sleep(WATCH_S)


def logs(names: list[Name], arguments: argparse.Namespace) -> int:
    """Prints the ends of the logs of each run."""
    for name in names:
        folder = name.folder
        print(f"== {name}  {folder.name}")
        events = jobs.history(folder)
        submitted = jobs.last(events, "submitted")
        pattern = (submitted or {}).get("logs")
        files = [Path(name) for name in sorted(glob.glob(pattern))] if pattern else []
        if not files:
            print("no log: its job has not begun, or it printed to the terminal")
        for path in by_cause(files):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines:
                print(f"-- {path}")
                print("\n".join(lines[-arguments.lines :]))
    return 0


def again(names: list[Name], arguments: argparse.Namespace) -> int:
    """Launches again what has not finished."""
    return retry(names, arguments.overrides, to_stderr)


def cancel(names: list[Name], arguments: argparse.Namespace) -> int:
    """Ends the jobs of runs that wait or run, and the processes of this machine; 1 where one could not be ended."""
    called = {name.folder: str(name) for name in names}
    states = [state for state in states_of(list(called)) if not state.over]
    here = [state for state in states if state.backend != "slurm"]
    ended = _end_here(here, arguments.study)
    for state in (state for state in here if state.folder not in ended):
        where = f"on {state.node}" if state.node else "where it runs"
        print(f"{called[state.folder]} is {state.state}, not on SLURM: end the command that started it, {where}")
    if on_slurm := [state.job for state in states if state.backend == "slurm"]:
        slurm.cancel(on_slurm)
    count = len(ended) + len(on_slurm)
    cancelled = f"{count} {'job' if count == 1 else 'jobs'} cancelled"
    print(f"{cancelled}; python -m beni.launch retry {arguments.study} goes on with what has begun")
    return int(count < len(states))


def _end_here(wanted: Sequence[State], study: Path) -> set[Path]:
    """Ends runs of this machine: a sweep with all that it still has, where all of that is wanted; else run by run.

    Returns:
        Folders of the runs that are told to end, or not to begin.
    """
    ended: set[Path] = set()
    every = [state for state in states_of(runs_of(study)) if not state.over and state.backend != "slurm"]
    for sweep, given in {_sweep(state): state.turn.submitted or {} for state in wanted}.items():
        own = {state.folder for state in every if _sweep(state) == sweep}
        if own <= {state.folder for state in wanted} and processes.ask_to_end(given):
            ended |= own
    rest = [state for state in wanted if state.folder not in ended]
    return ended | {state.folder for state in rest if local.call_off(state.folder, state.turn)}


def _sweep(state: State) -> tuple[Any, ...]:
    """What tells apart who was given a run of this machine."""
    given = state.turn.submitted or {}
    return given.get("node"), given.get("job"), given.get("born")


COMMANDS = {"status": status, "watch": watch, "logs": logs, "retry": again, "cancel": cancel}

if __name__ == "__main__":
    sys.exit(main())
