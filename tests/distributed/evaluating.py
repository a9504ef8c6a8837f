"""One rank of an evaluation in which rank 1 fails: ``evaluating.py SETTINGS.json``.

SETTINGS: words (of the command), fault (``raises``, ``hangs`` or ``dies``), after (batches that rank 1 scores first).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from beni.evals.subject import Subject
from beni.evaluate import main


def spoil(fault: str, after: int) -> None:
    """Lets this rank fail in the batch behind so many."""
    generate, called = Subject.generate, []

    def failing(self, *given):
        called.append(1)
        if len(called) <= after:
            return generate(self, *given)
        if fault == "hangs":
            time.sleep(3600)
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a batch that cannot be")

    Subject.generate = failing


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    if os.environ.get("RANK") == "1":
        spoil(settings["fault"], settings["after"])
    sys.exit(main(settings["words"]))
