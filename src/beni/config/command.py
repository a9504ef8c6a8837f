"""Running a Hydra command: user errors on one screen with exit code 2, bugs with their traceback and exit code 1.

A run that a signal has ended is neither: one line and exit code 75.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from beni.config.explain import explained
from beni.config.source import option_files
from beni.console import lost_result, replace_output
from beni.errors import PREEMPTED, BeniError, Preempted
from beni.redact import redacted

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended, as a shell has it."""

_SHOWING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help")
"""With these a command shows something and runs nothing: what it prints is its result."""


def run_command(main: Callable[[], None]) -> None:
    """Calls a ``@hydra.main`` function and ends the process with the right code.

    Hydra prints and exits with 1 on its own unless asked for full errors; asked, it lets them through to us.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    replace_output()
    sys.argv[1:] = options_first(sys.argv[1:])
    try:
        with explained(), option_files():
            main()
    except BeniError as error:
        report(error)
        sys.exit(2)
    except Preempted as error:
        report(error)
        sys.exit(PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if any(word in _SHOWING or word.startswith("--cfg=") for word in sys.argv[1:]):
        sys.exit(lost_result())


def options_first(arguments: Sequence[str]) -> list[str]:
    """Arguments of a Hydra command with its options before its overrides, which argparse takes in one place only:
    ``resampler=none,perceiver -m`` would end with its usage.
    """
    actions = {name: action for action in get_args_parser()._actions for name in action.option_strings}
    options: list[str] = []
    overrides: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        action = actions.get(word)
        if action is None or not waiting or action.nargs not in (None, "?"):
            continue
        if action.nargs is None or action.choices is None or waiting[0] in action.choices:
            options.append(waiting.pop(0))
    return [*options, *overrides]


def one_screen(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Ends a single run that meets a user error here, before Hydra puts a line of its own above the message.

    The arms of a multirun do not come by: beni's launcher takes them (hydra_plugins/beni).
    """

    @wraps(task)
    def guarded(composed: DictConfig) -> Any:
        try:
            return task(composed)
        except (BeniError, Preempted) as error:
            report(error)
            sys.exit(PREEMPTED if isinstance(error, Preempted) else 2)
        except Exception as error:  # a bug; Hydra would print all overrides above it, secrets among them
            print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            sys.exit(1)

    return guarded


def report(error: BeniError | Preempted) -> None:
    """One screen on stderr: what was wrong and what to set, or how the run goes on."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
