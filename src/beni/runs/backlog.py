"""What a run notes about itself, on a disk that may be full: kept, told once, and written as soon as there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from beni.errors import ResourceError


class Backlog:
    """Writes that the disk has not taken. They are tried again with every later one.

    Attributes:
        tell: where it is said that there are some, once.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = Console(stderr=True, markup=False).print
        self._waiting: dict[Path, Callable[[], object]] = {}
        self._told = False

    def write(self, path: Path, write: Callable[[], object]) -> None:
        """Calls ``write``, which writes ``path``, after those that wait; of two for one path the later one counts."""
        self._waiting[path] = write
        if (problem := self.retry()) and not self._told:
            self._told = True
            self.tell(f"{problem}; the run continues and writes it once there is space")

    def retry(self) -> str | None:
        """Tries those that wait; why some still do."""
        problem = None
        for path, write in list(self._waiting.items()):
            try:
                write()
            except OSError as error:
                problem = f"{path} could not be written: {error}"
            else:
                del self._waiting[path]
        return problem

    @property
    def waiting(self) -> str:
        """Names of the files that are not written, or not whole."""
        return ", ".join(path.name for path in self._waiting)

    def end(self) -> None:
        """The last try.

        Raises:
            ResourceError: names what is not written.
        """
        if problem := self.retry():
            raise ResourceError(
                f"{problem}\n  not written: {self.waiting}\n"
                "  fix: free disk space; the same command resumes from the newest checkpoint"
            )


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around a write without which the run is of no use.

    Raises:
        ResourceError: when the disk does not take it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{path} could not be written: {error}\n  fix: free disk space, or set paths.runs to a writable folder"
        ) from error
