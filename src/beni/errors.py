"""Errors a user can act on.

Every message holds the value, what was expected, and the override that fixes it. Commands print these on one screen
and exit with code 2; anything else is a bug in beni and keeps its traceback (exit code 1).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from beni.redact import redacted

PREEMPTED = 75
"""Exit code of a run that a signal has ended (EX_TEMPFAIL of sysexits.h): the same command goes on."""
HUNG = 70
"""Exit code of a run that its watchdog has ended (EX_SOFTWARE of sysexits.h)."""


class BeniError(Exception):
    """Base class of every error that a change of configuration, data or machine can fix.

    Passwords and tokens in its message are hidden: messages are printed, and written to status.json.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(redacted(one) if isinstance(one, str) else one for one in args))


class ConfigError(BeniError):
    """A key, value or type in the composed run that beni does not know."""


class CompositionError(BeniError):
    """Two options that are fine alone and impossible together.

    Args:
        code: one of the E-codes of the docs, for instance ``E-HEADS``.
        message: the value found and what was expected.
        groups: the config groups involved, for instance ``("vision", "resampler")``.
        fix: the override that would make the run valid.
    """

    def __init__(self, code: str, message: str, *, groups: tuple[str, ...] = (), fix: str = "") -> None:
        self.code, self.groups, self.fix = code, groups, fix
        where = f" [{' x '.join(groups)}]" if groups else ""
        super().__init__(f"{code}{where}: {message}" + (f"\n  fix: {fix}" if fix else ""))
        self._given = (code, message, groups, fix)

    def __reduce__(self) -> tuple[Any, ...]:  # pickle, by which launchers bring it back from a job, knows no keywords
        code, message, groups, fix = self._given
        return partial(CompositionError, code, message, groups=groups, fix=fix), ()


class WeightsError(BeniError):
    """Pretrained weights, a tokenizer or an optional package that cannot be had on this machine."""


class ResourceError(BeniError):
    """The machine lacks the memory, device or disk that the run needs."""


class DataError(BeniError):
    """A sample, file or template that cannot be used; names file and row."""


class ResumeError(BeniError):
    """A run folder or checkpoint that does not belong to this run."""


class TrainabilityError(BeniError):
    """What actually trains differs from the plan of the run."""


class DivergenceError(BeniError):
    """A loss or gradient that is not finite, or a loss far above those before it, in a run that ends at such."""


class Preempted(BaseException):
    """A signal has ended the run; the same command goes on where it was.

    No error, so no ``Exception``: like ``KeyboardInterrupt`` it may be raised anywhere, and nobody on the way (Hydra,
    Pillow's callers, a loader of weights) takes it for a failure of what they were doing.
    """


def reason(error: BaseException, line: int = 0) -> str:
    """One line of a foreign error, for a message of beni's that keeps its cause: never empty, and with the error's type
    where its text is a bare key or nothing.

    Args:
        line: which of the lines that are not blank; -1 where the last one says why, after the others said where.
    """
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[line]}" if isinstance(error, KeyError) else lines[line]
