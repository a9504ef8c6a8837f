"""One arm in a process of its own: ``python -m beni.launch.job RUN_FOLDER`` runs the frozen config of that folder.

``--check`` instead reads frozen runs as a JSON list from stdin and writes a list of as many to stdout: of each what it
would cost (launch/estimate.py), or why it is impossible. Under ``study.match`` it also chooses what the budget leaves
open (launch/match.py).

A queued or requeued job reads this file and never ``conf/``, so editing a YAML meanwhile changes nothing. What takes
time to import is imported where it is used: a signal is heard from the first moment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beni.console import replace_output
from beni.errors import PREEMPTED, BeniError, Preempted, ResumeError
from beni.launch.early import too_early
from beni.signals import handling
from beni.training.preempt import SIGNALS

if TYPE_CHECKING:
    from beni.launch.estimate import Judged
    from beni.launch.match import Amount


def main(arguments: list[str]) -> int:
    """Exit code 0 when the run is finished, or not trained since its arm can no longer win (``study.stop``); 2 for a
    user error, 75 after a signal, 1 for a bug (with its traceback).
    """
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments == ["--check"]:
        print(json.dumps(judge(json.load(sys.stdin))))
        return 0
    return _run(Path(arguments[0]))


def _run(folder: Path) -> int:
    before = None
    try:
        with handling(SIGNALS, too_early):
            from beni.launch.dropping import dropped
            from beni.runs.status import read_status

            before = read_status(folder)
            frozen = _frozen_here(folder)
            if (why := dropped(folder, frozen)) is not None:
                print(f"not trained: {why}", file=sys.stderr)
                return 0
            from beni import run  # here and not above: the rest of beni.launch stays free of torch

            run.train(frozen)
    except (BeniError, Preempted) as error:
        from beni.config.command import report

        report(error)
        _note(folder, error, before)
        return PREEMPTED if isinstance(error, Preempted) else 2
    except Exception as error:
        _note(folder, error, before)
        raise
    return 0


def _frozen_here(folder: Path) -> dict[str, Any]:
    """The frozen run of a folder, which is the one that it would write.

    Raises:
        ResumeError: when there is none, it is damaged, or belongs into another folder.
    """
    from beni.runs.files import CONFIG
    from beni.runs.frozen import load_frozen
    from beni.runs.identity import run_folder

    frozen = load_frozen(folder)
    own = run_folder(frozen)
    if own.resolve() != folder.resolve():
        raise ResumeError(
            f"{folder} holds the run of {own}, seen from {Path.cwd()}: {CONFIG} was changed, or the folder moved\n"
            f"  fix: move it to {own}, or start the job where the run was frozen"
        )
    return frozen


def judge(runs: Sequence[dict[str, Any]]) -> list[Judged]:
    """Checks frozen runs of one sweep as they are checked before they train, and estimates their cost, after what
    ``study.match`` leaves open has been chosen. Runs that differ in their seed alone are looked at once.
    """
    from beni.launch.match import is_matched, solve

    known: dict[str, Judged] = {}
    found = []
    matched = solve(runs, _amounts()) if any(map(is_matched, runs)) else [None for _ in runs]
    for run, solution in zip(runs, matched, strict=True):
        if isinstance(solution, BeniError):
            found.append(_impossible(solution))
            continue
        run = run if solution is None else solution.run
        key = _key(run)
        if key not in known:
            known[key] = _judged(run)
        one = known[key].copy()
        if solution is not None:
            budget, amount = _plain(solution.budget), solution.amount
            one["matched"] = {"budget": budget, "amount": amount, "value": solution.value}
            if run["study"]["match"] == "train_flops":
                one["flops"] = amount  # of the run's own samples
        found.append(one)
    return found


def _amounts() -> Amount:
    """A run -> its amount of what ``study.match`` names; what costs do not depend on is looked at once."""
    from beni.config.sections.study import STEPS
    from beni.launch.match import with_value
    from beni.run import bill
    from beni.runs.identity import relevant

    bills: dict[str, Any] = {}

    def amount(run: Mapping[str, Any]) -> float:
        study, steps = run["study"], run["train"]["steps"]
        if study["match"] == "steps":
            return steps
        key = _key(relevant(with_value(run, STEPS, 1)))
        if key not in bills:
            bills[key] = bill(with_value(run, "train.seed", 0))
        return bills[key].amount(study["match"], steps)

    return amount


def _key(run: Mapping[str, Any]) -> str:
    """What tells runs apart that differ in more than their seed."""
    from beni.launch.match import with_value

    return json.dumps(with_value(run, "train.seed", 0), sort_keys=True, default=str)


def _plain(budget: float) -> float:
    """A whole number as an int, which an override writes as it is."""
    return int(budget) if float(budget).is_integer() else budget


def _impossible(error: BeniError) -> Judged:
    return {"problem": str(error), "tokens": 0, "trained": 0, "flops": 0, "memory": 0}


def _judged(run: dict[str, Any]) -> Judged:
    """Checks a frozen run as it is checked before it trains, and estimates its cost."""
    from beni.model.costing.plan import Assumed, plan_of
    from beni.run import plan

    launcher = run["launcher"]
    here = launcher.get("tasks_per_node", 1)
    world = launcher.get("nodes", 1) * here
    try:
        made = plan_of(run, Assumed((768, 1024), 128, 64, world, here), plan(run))
    except BeniError as error:
        return _impossible(error)
    samples = run["train"]["steps"] * run["train"]["batch_size"]
    return {
        "problem": None,
        "tokens": made.table.row("fusion").tokens,
        "trained": sum(row.trained for row in made.table.rows),
        "flops": float(made.table.train_flops_per_sample) * samples,
        "memory": made.need.peak,
    }


def _note(folder: Path, error: BaseException, before: Mapping[str, Any] | None) -> None:
    """Leaves the reason where the run itself had not come far enough to do so.

    Args:
        before: the status when this process began; another one is that of the run, or of another of its processes. None
            where it was not read any more.
    """
    from beni.runs.frozen import is_frozen
    from beni.runs.lock import in_use
    from beni.runs.status import ending, read_status, write_status

    status = read_status(folder)
    if before is not None and status != before:
        return
    if status.get("state") == "finished" or not is_frozen(folder) or in_use(folder):
        return
    try:
        write_status(folder, **status | ending(error))
    except OSError as full:
        print(f"{folder} does not say so: {full}", file=sys.stderr)


if __name__ == "__main__":
    replace_output()
    sys.exit(main(sys.argv[1:]))
