"""One arm in a process of its own: ``python -m beni.launch.job RUN_FOLDER`` runs the frozen config of that folder.

``--check`` instead reads frozen runs as a JSON list from stdin and stops at the first that is impossible.
A queued or requeued job reads this file and never ``conf/``, so editing a YAML meanwhile changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from beni.config.command import report
from beni.errors import BeniError, ResumeError


def load_frozen(folder: Path) -> dict[str, Any]:
    """The frozen run in ``folder``.

    Raises:
        ResumeError: when there is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ResumeError(f"{folder} has no config.yaml; expected a run folder that beni.train or a sweep has made")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Exit code 0 when the run is finished, 2 for a user error, 1 for a bug (with its traceback)."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    from beni import run  # here and not above: the rest of beni.launch stays free of torch

    try:
        if arguments == ["--check"]:
            for frozen in json.load(sys.stdin):
                run.plan(frozen)
        else:
            run.train(load_frozen(Path(arguments[0])))
    except BeniError as error:
        report(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
