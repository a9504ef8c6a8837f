"""Running a Hydra command: user errors on one screen with exit code 2, bugs with their traceback and exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from beni.config.explain import explained
from beni.errors import BeniError


def run_command(main: Callable[[], None]) -> None:
    """Calls a ``@hydra.main`` function and ends the process with the right code.

    Hydra prints and exits with 1 on its own unless asked for full errors; asked, it lets them through to us.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        with explained(overrides):
            main()
    except BeniError as error:
        report(error)
        sys.exit(2)


def report(error: BeniError) -> None:
    """One screen on stderr: what was wrong and what to set."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
