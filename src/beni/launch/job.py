"""One arm in a process of its own: ``python -m beni.launch.job RUN_FOLDER`` runs the frozen config of that folder.

``--check`` instead reads frozen runs as a JSON list from stdin and writes a list of as many to stdout: of each what it
would cost (launch/estimate.py), or why it is impossible.
A queued or requeued job reads this file and never ``conf/``, so editing a YAML meanwhile changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from beni.config.command import report
from beni.console import replace_output
from beni.errors import PREEMPTED, BeniError, Preempted, ResumeError
from beni.launch.dropping import dropped
from beni.launch.estimate import Judged
from beni.runs.files import CONFIG
from beni.runs.frozen import load_frozen
from beni.runs.identity import run_folder
from beni.runs.status import ending, read_status, write_status


def main(arguments: list[str]) -> int:
    """Exit code 0 when the run is finished, or not trained since its arm can no longer win (``study.stop``); 2 for a
    user error, 75 after a signal, 1 for a bug (with its traceback).
    """
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments == ["--check"]:
        print(json.dumps([_judged(frozen) for frozen in json.load(sys.stdin)]))
        return 0
    folder = Path(arguments[0])
    try:
        frozen = _frozen_here(folder)
        if (why := dropped(folder, frozen)) is not None:
            print(f"not trained: {why}", file=sys.stderr)
            return 0
        from beni import run  # here and not above: the rest of beni.launch stays free of torch

        run.train(frozen)
    except BeniError as error:
        report(error)
        _note(folder, error)
        return 2
    except Preempted as error:
        report(error)
        _note(folder, error)
        return PREEMPTED
    except Exception as error:
        _note(folder, error)
        raise
    return 0


def _frozen_here(folder: Path) -> dict[str, Any]:
    """The frozen run of a folder, which is the one that it would write.

    Raises:
        ResumeError: when there is none, it is damaged, or belongs into another folder.
    """
    frozen = load_frozen(folder)
    own = run_folder(frozen)
    if own.resolve() != folder.resolve():
        raise ResumeError(
            f"{folder} holds the run of {own}, seen from {Path.cwd()}: {CONFIG} was changed, or the folder moved\n"
            f"  fix: move it to {own}, or start the job where the run was frozen"
        )
    return frozen


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
        return {"problem": str(error), "tokens": 0, "trained": 0, "flops": 0, "memory": 0}
    samples = run["train"]["steps"] * run["train"]["batch_size"]
    return {
        "problem": None,
        "tokens": made.table.row("fusion").tokens,
        "trained": sum(row.trained for row in made.table.rows),
        "flops": float(made.table.train_flops_per_sample) * samples,
        "memory": made.need.peak,
    }


def _note(folder: Path, error: BaseException) -> None:
    """Leaves the reason where the run itself had not come far enough to do so."""
    status = read_status(folder)
    if status.get("state") == "queued":
        write_status(folder, **status | ending(error))


if __name__ == "__main__":
    replace_output()
    sys.exit(main(sys.argv[1:]))
