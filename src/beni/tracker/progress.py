"""How far a run is, for the person at the terminal: a live bar, or a plain line now and then where output is a file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

FIELDS = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "samples_per_s": "{:,.1f} samples/s",
    "data_wait": "data wait {:.0%}",
    "mfu": "MFU {:.1%}",
    "hfu": "HFU {:.1%}",
    "memory/peak_gib": "{:.1f} GiB",
    "goodput/compute": "goodput {:.0%}",
}
"""Keys of metrics.jsonl that are shown, and how; the last value of each."""


@contextmanager
def index_progress(shown: bool, title: str = "reading lengths") -> Iterator[Callable[[int, int], None] | None]:
    """A bar for the building of an index and the like, on stderr: call what it gives with samples done and samples
    altogether.

    It appears with the first call, since most indices are found in the cache.
    """
    if not shown:
        yield None
        return
    bar = Bar(TextColumn(title), BarColumn(bar_width=10), MofNCompleteColumn(), console=Console(stderr=True))

    def told(done: int, whole: int) -> None:
        if not bar.tasks:
            bar.add_task("")
            bar.start()
        bar.update(bar.tasks[0].id, completed=done, total=whole)

    try:
        yield told
    finally:
        if bar.tasks:
            bar.stop()


class Progress:
    """Context manager around the steps of a run, on stderr.

    Args:
        steps: of the whole run.
        shown: False on every rank but 0; then nothing is ever written.
        console: where to write; on one that is no terminal, plain lines.
        every: seconds between plain lines, at least. The first and the last update are written in any case.
        clock: seconds, from any origin.
    """

    def __init__(
        self,
        steps: int,
        *,
        shown: bool = True,
        console: Console | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.shown, self.every, self.clock = steps, shown, every, clock
        self.console = console or Console(stderr=True)
        # rich believes FORCE_COLOR; a file is still no place for a bar.
        live = shown and self.console.file.isatty() and not self.console.is_dumb_terminal
        self._bar = self._make_bar() if live else None
        self._task: TaskID | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)  # (time, step): the speed is that of these updates
        self._values: dict[str, float] = {}
        self._written: float | None = None  # time of the last plain line
        self._unwritten = False

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self.steps, line="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._unwritten:
            self._write(self.clock())

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """``step`` steps are done. ``values`` as for metrics.jsonl; what it lacks keeps its last value."""
        if not self.shown:
            return
        now = self.clock()
        self._marks.append((now, step))
        self._values |= {key: value for key, value in values.items() if key in FIELDS}
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, line=self._line())
            return
        self._unwritten = True
        if self._written is None or now - self._written >= self.every or step >= self.steps:
            self._write(now)

    def _write(self, now: float) -> None:
        step = self._marks[-1][1]
        self.console.print(f"step {step}/{self.steps}  {self._line()}", markup=False, highlight=False, soft_wrap=True)
        self._written, self._unwritten = now, False

    def _line(self) -> str:
        values = self._values
        if values.get("hfu") == values.get("mfu"):  # nothing is computed again
            values = {key: value for key, value in values.items() if key != "hfu"}
        shown = [template.format(values[key]) for key, template in FIELDS.items() if key in values]
        return "  ".join([self._eta(), *shown])

    def _eta(self) -> str:
        (start, first), (now, step) = self._marks[0], self._marks[-1]
        if step >= self.steps:
            return "done"
        if step <= first:  # one update tells no speed, and the first step is the slowest
            return "ETA -"
        return f"ETA {timedelta(seconds=round((now - start) / (step - first) * (self.steps - step)))}"

    def _make_bar(self) -> Bar:
        line = TextColumn("{task.fields[line]}", markup=False)
        # Two refreshes a second: rich's ten take the interpreter from the training loop for nothing.
        return Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            line,
            console=self.console,
            refresh_per_second=2,
        )
