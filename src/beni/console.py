"""Standard output and standard error that never end a run: a log on a full disk, a reader that has closed its pipe.

What a run prints is for whoever looks on; what counts is in its folder. So while a run goes on, both streams drop what
cannot be written, whoever writes it (beni, warnings, logging, other libraries' progress bars), and remember why. The
streams themselves are replaced, not single prints: a stream of Python's own that has failed once fails again when the
process ends, and turns its exit code into 120.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, TextIO

_STREAMS = ("stdout", "stderr")


class _Dropping(io.RawIOBase):
    """Bytes on their way to a file descriptor that may not take them; the descriptor stays open."""

    def __init__(self, descriptor: int, terminal: bool) -> None:
        self._descriptor, self._terminal = descriptor, terminal
        self.problem: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._terminal

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.problem = error
        return size


class _Stream(io.TextIOWrapper):
    """A text stream over ``_Dropping``, written through at the end of each line."""

    def __init__(self, before: TextIO) -> None:
        self.dropping = _Dropping(before.fileno(), before.isatty())
        buffered = io.BufferedWriter(self.dropping)
        super().__init__(buffered, encoding=before.encoding, errors=before.errors, line_buffering=True)


def replace_output() -> None:
    """From now on, what standard output and error do not take is dropped.

    Streams without a file descriptor (a notebook's, those of a test) stay as they are.
    """
    for name in _STREAMS:
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Stream):
            continue
        with suppress(OSError, ValueError, AttributeError):  # it has no descriptor, or a closed one
            replaced = _Stream(stream)
            with suppress(OSError):
                stream.flush()
            setattr(sys, name, replaced)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """``replace_output`` for the time of a block; also a decorator, as ``@unfailing_output()``."""
    before = {name: getattr(sys, name) for name in _STREAMS}
    replace_output()
    ours = {name: getattr(sys, name) for name in _STREAMS}
    try:
        yield
    finally:
        for name, stream in before.items():
            if ours[name] is not stream and getattr(sys, name) is ours[name]:
                ours[name].flush()
                setattr(sys, name, stream)


def output_problems() -> dict[str, str]:
    """Which of the two streams has dropped something, and why: ``{"stderr": "No space left on device"}``."""
    return {name: error.strerror or str(error) for name in _STREAMS if (error := _problem(name)) is not None}


def printing_command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """The main function of a command whose result is what it prints.

    A reader that has seen enough (``| head``) may close its pipe: that is no error. A disk that does not take the
    result is one, with exit code 2.
    """

    @wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        with unfailing_output():
            code = main(argv)
            return code or lost_result()

    return guarded


def lost_result() -> int:
    """2, and a line on standard error, where standard output has not taken what was printed; else 0."""
    if sys.stdout is not None:
        sys.stdout.flush()
    error = _problem("stdout")
    if error is None or error.errno == errno.EPIPE:
        return 0
    print(
        f"ResourceError: standard output could not be written: {error.strerror or error}\n"
        "  fix: free disk space, or redirect the output",
        file=sys.stderr,
    )
    return 2


def _problem(name: str) -> OSError | None:
    stream = getattr(sys, name)
    return stream.dropping.problem if isinstance(stream, _Stream) else None


def to_stderr(text: str) -> None:
    """A line about what goes on, beside the result that a command prints."""
    print(text, file=sys.stderr, flush=True)
