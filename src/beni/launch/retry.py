"""``python -m beni.launch retry STUDY``: what has ended without finishing, and what waits and nobody will start, is
launched again as the run that it is; values of its launcher may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beni.config.check import check
from beni.errors import ConfigError, ResumeError
from beni.launch import slurm
from beni.launch.launch import Runs, Say, finish, hand_over, require, withdraw
from beni.launch.names import Name
from beni.launch.states import BAD, STUCK, UNKNOWN, State, states_of
from beni.launch.submit import Frozen, check_arms
from beni.launch.turns import turn
from beni.runs.files import IDENTITY, ORIGIN, read_json
from beni.runs.frozen import load_frozen
from beni.runs.identity import origin, run_folder


@dataclass(frozen=True)
class Choice:
    """What of the named runs is launched again, and what stays.

    Args:
        again: runs that ended without finishing, or that nobody will start.
        damaged: such runs whose folder cannot be read, so they stay.
        unknown: runs of a SLURM that does not answer; they stay too.
    """

    again: list[State]
    damaged: list[Name]
    unknown: list[Name]

    @staticmethod
    def of(names: Sequence[Name]) -> Choice:
        """Asks the run folders and SLURM."""
        made = Choice([], [], [])
        for name, state in zip(names, states_of([name.folder for name in names]), strict=True):
            if state.reason.startswith(UNKNOWN):
                made.unknown.append(name)
            elif state.state in BAD or state.stranded:
                made.damaged.append(name) if name.damage else made.again.append(state)
        return made

    @property
    def code(self) -> int:
        """Exit code: 1 where runs stay that may have failed."""
        return int(bool(self.damaged or self.unknown))

    def told(self) -> list[str]:
        """A line for each reason why runs stay, or that there is nothing to do."""
        lines = [
            f"{name}: {name.damage}, so it cannot be launched again; restore the file from a copy"
            for name in self.damaged
        ]
        if self.unknown:
            named = ", ".join(map(str, self.unknown))
            lines.append(f"SLURM does not answer: whether {named} run, wait or have failed is not known, so they stay")
        if not self.again:
            lines.append(f"nothing to retry{'' if lines else ': every run has finished, runs or waits for its turn'}")
        return lines


def retry(names: Sequence[Name], overrides: Sequence[str], say: Say) -> int:
    """Launches again what has ended without finishing, and what waits and nobody will start.

    Args:
        names: runs that may be launched again.
        overrides: values of the launcher, ``launcher.KEY=VALUE``.
        say: shows progress.

    Returns:
        Exit code 0; 1 where runs stay that may have failed, since they cannot be read or SLURM does not answer.

    Raises:
        ConfigError: when a value is not one of a launcher.
        ResumeError: when a folder holds a run that would write into another.
        ResourceError: when this machine lacks what a backend needs, or another command launches runs for long.
        ArmFailed: when a run that is waited for did not finish.
        Preempted: when a signal has ended the runs of this machine.
    """
    values = _launcher_values(overrides)
    with turn({name.folder.parent for name in names}, say):  # chosen inside: another retry may just have submitted them
        choice = Choice.of(names)
        for line in choice.told():
            print(line)
        if not choice.again:
            return choice.code
        runs = _checked(choice.again, values)
        frozen = [_frozen(folder, run) for folder, run in runs.items()]
        if held := [state.job for state in choice.again if STUCK in state.reason]:
            slurm.cancel(held)
        refused, work = hand_over(runs, say)
        withdraw(frozen, refused)
    work()
    finish([folder for folder, run in runs.items() if run["launcher"].get("wait", True)], refused, say, len(runs))
    return choice.code


def _checked(states: Sequence[State], values: Mapping[str, Any]) -> Runs:
    """The frozen runs, with values of the launcher changed."""
    runs = {}
    for state in states:
        run = _frozen_here(state.folder)
        run["launcher"] = run["launcher"] | values
        check(run)
        runs[state.folder] = run
    check_arms(list(runs.values()))
    require(runs)
    return runs


def _frozen(folder: Path, run: dict[str, Any]) -> Frozen:
    before = read_json(folder / ORIGIN)[0]
    return Frozen.of(run, origin(run, before.get("command")) | {"hypothesis": before.get("hypothesis")})


def _launcher_values(overrides: Sequence[str]) -> dict[str, Any]:
    """``launcher.mem_gb=128`` -> values of the section."""
    values = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key.startswith("launcher.") or key.count(".") != 1:
            raise ConfigError(
                f"{word}: a run that is retried is the same run; expected values of its launcher\n"
                "  fix: write launcher.KEY=VALUE, such as launcher.mem_gb=128, or launch another run with beni.train"
            )
        try:
            values[key.removeprefix("launcher.")] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "it cannot be read"
            raise ConfigError(
                f"{word}: the value is no YAML ({problem}); expected a number, a text, a [list] or a {{key: value}}\n"
                "  fix: close its brackets and quotes"
            ) from None
    return values


def _frozen_here(folder: Path) -> dict[str, Any]:
    """The frozen run of a folder, which is the one that it would write.

    Raises:
        ResumeError: when there is none, it is damaged, or belongs into another folder.
    """
    run = load_frozen(folder)
    own, here = run_folder(run), folder.resolve()
    if own.resolve() == here:
        return run
    there = run | {"study": run["study"] | {"name": here.parent.name}}
    values = [f"study.name={here.parent.name}"]
    if run_folder(there).resolve() != here:
        values.append(f"paths.runs={here.parent.parent}")
    raise ResumeError(
        f"{folder} holds the run of {own}, seen from {Path.cwd()}: the study was moved or copied, or this is another "
        f"working directory; expected it there, where its job would write\n"
        f"  fix: move it to {own.parent}, or retry that where this is a copy; or give the command that {ORIGIN} or "
        f"{IDENTITY} has, with {' '.join(values)}"
    )
