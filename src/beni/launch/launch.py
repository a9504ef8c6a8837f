"""Checked runs -> processes and jobs: what is finished or at work is left alone, the rest is frozen with its code and
handed over to the backend that its ``launcher`` names.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beni.errors import ResourceError
from beni.launch import local, slurm
from beni.launch.dropping import dropped
from beni.launch.states import State, states_of
from beni.launch.submit import ArmFailed, Frozen, settle_arm
from beni.launch.turns import LOCK, turn
from beni.runs.code import FOLDER as CODE
from beni.runs.code import take_snapshot
from beni.runs.files import LOGS
from beni.runs.frozen import is_frozen
from beni.runs.identity import now, origin, run_folder

Say = Callable[[str], None]
Runs = Mapping[Path, dict[str, Any]]
"""Run folder -> the frozen run."""

POLL_S = 10.0
"""Seconds between two questions to the scheduler while runs are waited for."""


def launch(runs: Sequence[tuple[dict[str, Any], str | None]], say: Say) -> None:
    """Launches runs with the command that repeats each; of a run that is named twice the first counts.

    Args:
        runs: that have been checked; None for a command takes that of this process.

    Raises:
        ResumeError: when another run stands in the folder of one, or a damaged one.
        ResourceError: when this machine or the scheduler takes no run, what had been written for it is gone again; or
            when another command launches runs of the study for long.
        ArmFailed: after all runs that are waited for, when some did not finish; says which and why.
        Preempted: when a signal has ended the runs of this machine.
    """
    wanted: dict[Path, dict[str, Any]] = {}
    commands: dict[Path, str | None] = {}
    for run, command in _in_blocks(runs):
        wanted.setdefault(run_folder(run), run)
        commands.setdefault(run_folder(run), command)
    require(wanted)
    with turn({folder.parent for folder in wanted}, say):
        new = {folder: wanted[folder] for folder in _to_launch(wanted, say)}
        places = _places(runs)
        frozen = [Frozen.of(run, origin(run, commands[folder]) | places[folder]) for folder, run in new.items()]
        refused, work = hand_over(new, say)
        withdraw(frozen, refused)
    work()
    if refused and len(refused) == len(new):
        raise ResourceError(f"no run was launched: {next(iter(refused.values()))}")
    awaited = [folder for folder, run in wanted.items() if run["launcher"].get("wait", True)]
    finish(awaited, refused, say, len(wanted))


def withdraw(frozen: Sequence[Frozen], refused: Mapping[Path, str]) -> None:
    """Leaves the folders of runs that no backend has taken as they were, and nothing of a study that has no run."""
    for arm in frozen:
        if arm.folder in refused:
            arm.withdraw()
    for study in {arm.folder.parent for arm in frozen}:
        if study.is_dir() and {path.name for path in study.iterdir()} <= {CODE, LOGS, LOCK}:
            shutil.rmtree(study / CODE, ignore_errors=True)
            shutil.rmtree(study / LOGS, ignore_errors=True)


def _places(runs: Sequence[tuple[dict[str, Any], str | None]]) -> dict[Path, dict[str, Any]]:
    """What origin.json says of the sweep of each run: when it was launched, and where the run stands among its arms."""
    when = now()
    folders = dict.fromkeys(run_folder(run) for run, _ in runs)
    return {folder: {"launched": when, "place": at} for at, folder in enumerate(folders)}


def _in_blocks(runs: Sequence[tuple[dict[str, Any], str | None]]) -> Sequence[tuple[dict[str, Any], str | None]]:
    """Seed by seed where arms may be dropped between seeds (``study.stop``); else in their order."""
    if all(run["study"].get("stop") is None for run, _ in runs):
        return runs
    return sorted(runs, key=lambda one: one[0]["train"]["seed"])


def require(runs: Runs) -> None:
    """Raises ResourceError where this machine lacks what a backend needs."""
    if any(run["launcher"]["backend"] == "slurm" for run in runs.values()):
        slurm.require_slurm()


class Handed(NamedTuple):
    """What became of runs that were handed over.

    Attributes:
        refused: the reason for each run that its backend has not taken.
        work: what this process has to do for those that were taken: it trains them, or nothing. Raises Preempted when a
            signal has ended them.
    """

    refused: dict[Path, str]
    work: Callable[[], None]


def hand_over(runs: Runs, say: Say) -> Handed:
    """Gives frozen runs to their backends; from then on others see who has them."""
    refused: dict[Path, str] = {}
    works: list[Callable[[], None]] = []
    for backend, give in BACKENDS.items():
        own = {folder: run for folder, run in runs.items() if run["launcher"]["backend"] == backend}
        if own:
            handed = give(own, say)
            refused |= handed.refused
            works.append(handed.work)

    def work() -> None:
        for one in works:
            one()

    return Handed(refused, work)


def _to_slurm(runs: Runs, say: Say) -> Handed:
    folders = list(runs)
    code = take_snapshot(folders[0].parent)
    refused = slurm.submit(folders, [run["launcher"] for run in runs.values()], code)
    reasons = {folder: group.reason for group in refused for folder in group.folders}
    taken = [folder for folder in folders if folder not in reasons]
    if taken:
        say(f"{_runs(len(taken))} submitted to SLURM; python -m beni.launch status {_study(taken)} follows")
    return Handed(reasons, lambda: None)


def _to_processes(runs: Runs, say: Say) -> Handed:
    folders = list(runs)
    at_a_time = max(run["launcher"]["jobs"] for run in runs.values())
    sweep = local.Sweep(folders, take_snapshot(folders[0].parent), at_a_time, say)

    def work() -> None:
        sweep.run()

    return Handed({}, work)


def _to_this_process(runs: Runs, say: Say) -> Handed:
    """Errors come through as they are, for a debugger."""

    def work() -> None:
        from beni.run import train

        for number, (folder, run) in enumerate(runs.items(), start=1):
            say(f"arm {number}/{len(runs)}: {folder.name}")
            if (why := dropped(folder, run)) is None:
                with local.in_this_process(folder):
                    train(run)
            else:
                say(f"not trained: {why}")

    return Handed({}, work)


BACKENDS: dict[str, Callable[[Runs, Say], Handed]] = {
    "slurm": _to_slurm,
    "local": _to_processes,
    "debug": _to_this_process,
}
"""``launcher.backend`` -> who takes its runs; SLURM first, since it may refuse them."""


def finish(folders: Sequence[Path], refused: Mapping[Path, str], say: Say, total: int | None = None) -> None:
    """Waits until runs have ended, and says how.

    Args:
        folders: of the runs that are waited for.
        refused: runs that were not launched, and why.
        total: of the runs that the command names; None where they are these.

    Raises:
        ArmFailed: when one did not finish, or was refused.
    """
    awaited = [folder for folder in folders if folder not in refused]
    failed = dict(refused)
    states = _ended(awaited, say)
    for state in states:
        if (reason := settle_arm(state.folder, ArmFailed(state.reason) if state.reason else None)) is not None:
            failed[state.folder] = state.reason or reason
    if failed:
        raise ArmFailed(
            f"{len(failed)} of {total or len(awaited) + len(refused)} arms failed:\n"
            + "\n".join(f"  {folder.name}: {reason}" for folder, reason in failed.items())
            + f"\n  python -m beni.compare {_study(list(failed))} shows all"
        )
    ended = sum(state.state == "dropped" for state in states)
    if len(awaited) > 1:
        rest = f", {ended} dropped by study.stop" if ended else ""
        say(f"{_runs(len(awaited) - ended)} finished{rest}; python -m beni.compare {_study(awaited)}")


def _ended(folders: Sequence[Path], say: Say) -> list[State]:
    """Waits until nobody works on a run any more, nor is going to."""
    try:
        while any(map(_at_work, states := states_of(folders))):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        study = _study(folders)
        say(f"the jobs go on without this command; python -m beni.launch status {study} follows them, cancel ends them")
        raise
    return states


def _to_launch(wanted: Runs, say: Say) -> list[Path]:
    """Runs that are neither finished nor at work, nor waiting for SLURM already."""
    states = {one.folder: one for one in states_of([folder for folder in wanted if is_frozen(folder)])}
    left, why = [], Counter[str]()
    for folder, run in wanted.items():
        state = states.get(folder)
        if state is not None and _at_work(state):
            why["are at work, or wait for their turn, already"] += 1
        elif state is not None and state.state == "finished" and run["checkpoint"]["resume"] != "never":
            why["have finished before"] += 1
        elif state is not None and state.state == "dropped" and _stays_dropped(run):
            why["were dropped by study.stop; study.stop=null trains them"] += 1
        else:
            left.append(folder)
    for words, count in why.items():
        say(f"{count} of {len(wanted)} runs {words}")
    return left


def _stays_dropped(run: Mapping[str, Any]) -> bool:
    return run["study"].get("stop") is not None and run["checkpoint"]["resume"] != "never"


def _at_work(state: State) -> bool:
    """Whether somebody runs it or is going to, or may: of a run of this machine that waits, its sweep decides."""
    return not state.over


def _study(folders: Sequence[Path]) -> Path:
    return folders[0].parent


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
