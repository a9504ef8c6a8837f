"""Whether an arm of a study with ``study.stop`` can still win, asked when one of its runs begins.

The finished runs of the study folder tell (analysis/elimination.py), so it is the same for processes of this machine,
for jobs of SLURM, and for a study that is launched again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from beni.analysis.comparison import ACCURACY, LOSS
from beni.analysis.elimination import Block, Dropped, eliminate
from beni.analysis.stats import lower_is_better, metric_value
from beni.launch.states import states_of
from beni.runs.lock import in_use
from beni.runs.read import Arm, arms, collect_study
from beni.runs.status import is_finished, read_status, write_status

OVER = frozenset({"finished", "failed"})
UNSURE = frozenset({"queued", "running", "preempted"})
"""States of a run that somebody works on or will, or that was killed or cancelled: its folder alone cannot tell."""


def dropped(folder: Path, run: dict[str, Any]) -> Dropped | None:
    """Why the arm of a frozen run can no longer win, which its status says too afterwards; None where it can, the run
    has finished or is at work, or ``study.stop`` is null.

    Whether other runs are over is asked, of the scheduler too, only where the answer decides.
    """
    error = run["study"].get("stop")
    if error is None or is_finished(folder) or in_use(folder):
        return None
    groups = arms(collect_study(folder.parent))
    own = next((arm.label for arm in groups if any(one.folder.name == folder.name for one in arm.runs)), None)
    if own is None:
        return None
    labels = [arm.label for arm in groups]
    unsure = {
        one.folder for arm in groups for one in arm.runs if one.state in UNSURE and one.folder.name != folder.name
    }
    why = eliminate(labels, _blocks(groups, unsure), error).get(own)
    if why is not None and unsure:
        over = {state.folder for state in states_of(sorted(unsure)) if state.over}
        why = eliminate(labels, _blocks(groups, over), error).get(own)
    if why is not None:
        _note(folder, why)
    return why


def _note(folder: Path, why: Dropped) -> None:
    told = {"type": "Dropped", "message": str(why), "traceback": ""}
    write_status(folder, **read_status(folder) | {"state": "dropped", "error": told})


def _blocks(groups: list[Arm], over: Collection[Path]) -> list[Block]:
    """The scores of each seed in turn, of the arms that have come to an end under it.

    Args:
        over: folders of runs that nobody will finish, though they do not say so.
    """
    finished = [run for arm in groups for run in arm.finished.values()]
    metric = ACCURACY if any(metric_value(run, ACCURACY) is not None for run in finished) else LOSS
    sign = -1 if lower_is_better(metric) else 1
    blocks: list[Block] = []
    for seed in sorted({run.seed for arm in groups for run in arm.runs if run.seed is not None}):
        block: dict[str, float | None] = {}
        for arm in groups:
            if seed in arm.finished:
                value = metric_value(arm.finished[seed], metric)
                block[arm.label] = None if value is None else sign * value
            elif any(run.seed == seed and (run.state in OVER or run.folder in over) for run in arm.runs):
                block[arm.label] = None
        blocks.append(block)
    return blocks
