"""Which log of a run's processes has the error that the others follow from.

One process fails, and its peers end with it: their messages are as long and come from the same moment. So logs are
ranked by what they say at the start of a line: an error of its own, one that follows from a lost peer, or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_BEFORE = r"^(?:\[rank\d+\]:\s*|\d+:\s*)?"
"""What torch and srun's ``--label`` put before a line."""

_ERROR = re.compile(
    _BEFORE + r"(?:(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Interrupt)(?::|$)|Fatal Python error:|Segmentation fault"
    r"|Killed|(?:slurmstepd|srun|sbatch): error:|terminate called after)",
    re.MULTILINE,
)
"""An error at the start of a line: the last line of a traceback, a message of beni's, of the system, or of SLURM."""

_FOLLOWS = re.compile(
    r"connection (?:was )?(?:closed|reset)|peer closed|gloo/transport|broken pipe|remote process exited"
    r"|ncclRemoteError|socket timeout|store.{0,40}(?:closed|failed to recv)|failed to recv|waitForInput"
    r"|ProcessGroup\w* .*(?:abort|shut)"
    r"|ChildFailedError|SignalException|STEP \S+ ON .* CANCELLED|Job step aborted|task .*: (?:Killed|Terminated|Exited)"
    r"|Terminating StepId|DistNetworkError|received signal 15",
    re.IGNORECASE,
)
"""Errors that are known to follow from the end of another process."""


def by_cause(files: Iterable[Path]) -> list[Path]:
    """Logs with an error of their own first, then those whose errors follow from another process, then the rest; among
    equals the one that was written to last comes last.
    """
    return sorted(files, key=lambda path: (_rank(path), path.stat().st_mtime, path.name))


def _rank(path: Path) -> int:
    """0 for an error of its own, 1 for errors that follow from another process, 2 for none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    errors = [text[match.start() :].split("\n", 1)[0] for match in _ERROR.finditer(text)]
    own = [line for line in errors if _FOLLOWS.search(line) is None]
    return 0 if own else 1 if errors else 2
